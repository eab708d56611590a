"""Every built-in dialect, on texts written after the published formats: what each thread sees, and what is joined.

One id a character, and one for each control token; ``\\0`` is the end of sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import Context, ForkAt
from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.errors import DialectError
from forkjoin_scheduler.families.family import Branch, Family
from forkjoin_scheduler.families.fork import Deviation, ForkPlan, Refusal, plan_fork
from forkjoin_scheduler.families.stitch import joined_offset, num_skipped, thread_offset
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.joins.joined import joined_ids, last_match, plan_join, written
from tests.unit.conftest import ByteTokenizer

TURNS = ("<B>", "<U>", "<A>")
STOP, EOS, LENGTH, CUT = ThreadEnd.STOP, ThreadEnd.EOS, ThreadEnd.LENGTH, ThreadEnd.CUT


@dataclass(frozen=True)
class Published:
    """A fork and its join: ``joined`` is what the parent goes on from, or what the answer shows of it."""

    prompt: str
    #: What the branch wrote up to the fork.
    wrote: str
    #: All that each thread sees before it writes.
    sees: list[str]
    #: What each thread wrote, its end included, and how it ended.
    threads: list[tuple[str, ThreadEnd]]
    joined: str
    #: What the parent wrote between the fork and the join, where it does not wait.
    meanwhile: str = ""


THREADWEAVER = (
    "<Parallel>\n<Outlines>\n<Outline>1: even</Outline>\n<Outline>2: odd</Outline>\n</Outlines>",
    "<Parallel>\n<Outlines>\n<Outline>9: a</Outline>\n</Outlines>\n<Thread>\n9: b</Thread>\n</Parallel>\n",
)
MULTIVERSE = "<Parallel>\n<Goal>\n<Outline>1: even</Outline>\n<Outline>2.1: odd</Outline>\n<Outline>10: 0</Outline>\n</Goal>"
NPR = "<guideline>\n<plan>1: even</plan>\n<plan>2: odd</plan>\n</guideline>"
MEDVERSE = (
    "As in Transient Step 1: draft; Dependency: [].\n"
    "<Plan>\n<Outline> Transient Step 1: Pain -> MI; Dependency: [] </Outline>\n"
    "<Outline> Transient Step 2: SBP < 90 -> shock; Dependency: [] </Outline>\n</Plan>"
)
MEDVERSE_CHAIN = MEDVERSE.replace("shock; Dependency: []", "shock; Dependency: [1]")
ASPD = "Two:\n<|title|>Cats<|/title|><|title|>1 < 2<|/title|><|title|>Cats<|/title|><|para|>"
PARATHINKER = "<B>How many?<A><think>"
SUMMARY = "<summary>By analyzing multiple reasoning processes above, I concluded that: The final answer is"
APR_ROOT = "Moving to Node #0\nCurrent State: 39:[36, 50, 25, 2], Operations: []"
APR_TRACE = (
    "\nExploring Operation: 36-25=11, Resulting Numbers: [50, 2, 11]\n"
    "Generated Node #0,0: 39:[50, 2, 11] Operation: 36-25=11\n"
    "Moving to Node #0,0\nCurrent State: 39:[50, 2, 11], Operations: ['36-25=11']\n"
    "Generated Node #0,0,1: 39:[11, 25] Operation: 50/2=25\n"
)
APR_CALL = (
    "<Calling Sub Searches>\n"
    "<Start Sub Search 0 at level 1> Moving to Node #0,0,1\n"
    "<Start Sub Search 1 at level 1> Moving to Node #0,0\n"
    "<End Calling Sub Searches>\n"
)
APR_PATH = (
    "Moving to Node #0,0\nCurrent State: 39:[50, 2, 11], Operations: ['36-25=11']\n"
    "Exploring Operation: 50-11=39, Resulting Numbers: [2, 39]\n39,39 equal: Goal Reached"
)
PROMISE = '<promise topic="length" tokens="20"/>'
SSFT_THREADS = (
    "x\n</think1>\nSo \\boxed{12}.\0",
    "y \\boxed{3}, no: \\boxed{\\frac{1}{2}}\0",
    "none\0",
    "\\boxed{\\frac{1}{2}}\0",
    "\\boxed{\\sqrt{\\frac{1}{2}}}\0",
    "\\boxed{12}, no: \\boxed{ \\frac{1}{2} }\0",
)

PUBLISHED = {
    "threadweaver": Published(
        prompt="<B>Q<A>",
        wrote=THREADWEAVER[1] + THREADWEAVER[0],
        sees=[
            f"<B>Q<A>{THREADWEAVER[1]}{THREADWEAVER[0]}\n<Thread>\n1:",
            f"<B>Q<A>{THREADWEAVER[1]}{THREADWEAVER[0]}\n<Thread>\n2:",
        ],
        threads=[(" ab\n</Thread>", STOP), (" c\n</Thread>", STOP)],
        joined=(
            f"<B>Q<A>{THREADWEAVER[1]}{THREADWEAVER[0]}"
            "\n<Thread>\n1: ab\n</Thread><Thread>\n2: c\n</Thread>\n"
        ),
    ),
    # A thread that does not close gets its end tag, and the answer ends there, the block open.
    "threadweaver-eval": Published(
        prompt="<B>Q<A>",
        wrote=THREADWEAVER[0],
        sees=[f"<B>Q<A>{THREADWEAVER[0]}\n<Thread>\n{n}:" for n in (1, 2)],
        threads=[(" ab\n</Thread>", STOP), (" c\n</Thread>", STOP)],
        joined=f"<B>Q<A>{THREADWEAVER[0]}\n<Thread>\n1: ab\n</Thread><Thread>\n2: c\n</Thread>\n",
    ),
    "parallel-r1": Published(
        prompt="Q",
        wrote="so <Parallel>",
        sees=["Qso <Parallel><Path>", "Qso <Parallel><Path>"],
        threads=[("ab</Path>", STOP), ("c\0", EOS)],
        joined="Qso <Parallel><Path>ab</Path><Path>c</Path></Parallel>\n<Summary>",
    ),
    # The newline behind each end tag is the model's next token there, and kept; that before <Path>
    # stands once.
    "multiverse": Published(
        prompt="Q",
        wrote=MULTIVERSE,
        sees=[f"Q{MULTIVERSE}\n<Path>\n{n}:" for n in ("1", "2.1", "10")],
        threads=[(" ab</Path>", STOP), (" c\0", EOS), (" d", LENGTH)],
        joined=(
            f"Q{MULTIVERSE}\n<Path>\n1: ab</Path>\n<Path>\n2.1: c\n</Path>\n<Path>\n10: d\n</Path>\n<Conclusion>\n"
        ),
    ),
    "npr": Published(
        prompt="Q",
        wrote=NPR,
        sees=[f"Q{NPR}\n<step>\n1:", f"Q{NPR}\n<step>\n2:"],
        threads=[(" ab</step>", STOP), (" c</step>", STOP)],
        joined=f"Q{NPR}\n<step>\n1: ab</step>\n<step>\n2: c</step>\n<takeaway>\n",
    ),
    # The steps of one stage; what opens them stands once.
    "medverse": Published(
        prompt="Q",
        wrote=MEDVERSE,
        sees=[
            f"Q{MEDVERSE}\n<Execution>\n<Step> Transient Step {n}\n"
            for n in ("1: Pain -> MI", "2: SBP < 90 -> shock")
        ],
        threads=[("So.\n</Step>", STOP), ("Then\0", EOS)],
        joined=(
            f"Q{MEDVERSE}\n<Execution>\n<Step> Transient Step 1: Pain -> MI\nSo.\n</Step>\n"
            "<Step> Transient Step 2: SBP < 90 -> shock\nThen\n</Step>\n</Execution>\n<Conclusion>\n"
        ),
    ),
    # All steps at once, also one that depends on another; what is not closed stays so, and nothing stands between.
    "medverse-eval": Published(
        prompt="Q",
        wrote=MEDVERSE_CHAIN,
        sees=[
            f"Q{MEDVERSE_CHAIN}\n<Execution>\n<Step> Transient Step {n}\n"
            for n in ("1: Pain -> MI", "2: SBP < 90 -> shock")
        ],
        threads=[("So.\n</Step>", STOP), ("Then\0", EOS)],
        joined=(
            f"Q{MEDVERSE_CHAIN}\n<Execution>\n<Step> Transient Step 1: Pain -> MI\nSo.\n</Step>"
            "<Step> Transient Step 2: SBP < 90 -> shock\nThen\n</Execution>\n<Conclusion>\n"
        ),
    ),
    # A branch has no number but its title.
    "aspd": Published(
        prompt="Q",
        wrote=ASPD,
        sees=[f"Q{ASPD}<|branch|>{title}: " for title in ("Cats", "1 < 2")],
        threads=[("purr<|/branch|>", STOP), ("so\0", EOS)],
        joined=(f"Q{ASPD}<|branch|>Cats: purr<|/branch|><|branch|>1 < 2: so<|/branch|><|/para|>\n"),
    ),
    # What stands behind the last </think>; references by length, shuffled as Random(42) does: 2, 1, 3, 0.
    "pacore": Published(
        prompt="<B>Why?<A>",
        wrote="",
        sees=["<B>Why?<A>"] * 4,
        threads=[
            ("<think>x</think>y</think>\n\nlonger, A\0", STOP),
            ("</think>B\0", STOP),
            ("cut in its thoughts", LENGTH),
            ("C {n}\0", STOP),
        ],
        joined=(
            "<B>You are given a problem and a list of reference responses. Your job is to analyze these references "
            "and provide your own response.\n\nOriginal Problem:\nWhy?\n\nReference Responses:\n"
            "\nReference 1:\ncut in its thoughts\n\nReference 2:\nB\n\nReference 3:\n\n\nlonger, A\n"
            "\nReference 4:\nC {n}\n"
            "\n\nNow, based on the original problem and reference responses above, please provide your own "
            "comprehensive solution.<A>"
        ),
    ),
    # Each thread begins behind the assistant's own opening; of the votes only the result is compared.
    "ssft": Published(
        prompt="<B>Q<|im_end|>\n<|im_start|>assistant\n",
        wrote="",
        sees=[f"<B>Q<|im_end|>\n<|im_start|>assistant\n<|im_start|><think{n}>\n" for n in range(1, 7)],
        threads=[(text, STOP) for text in SSFT_THREADS],
        joined="y \\boxed{3}, no: \\boxed{\\frac{1}{2}}",
    ),
    # The first path to end has its own end tag, the others are cut off where they are.
    "parathinker": Published(
        prompt=PARATHINKER,
        wrote="",
        sees=[f"{PARATHINKER}<think{n}>" for n in (1, 2, 3, 4)],
        threads=[("ab", CUT), ("cd</think2>", STOP), ("", CUT), ("efg", CUT)],
        joined=f"{PARATHINKER}<think1>ab<think2>cd</think2><think3><think4>efg{SUMMARY}",
    ),
    "apr": Published(
        prompt=f"<s>Sub Call Budget: 10 {APR_ROOT}",
        wrote=APR_TRACE + APR_CALL,
        sees=[
            "<s>Moving to Node #0,0,1\nCurrent State: 39:[11, 25], Operations: ['36-25=11', '50/2=25']",
            "<s>Moving to Node #0,0\nCurrent State: 39:[50, 2, 11], Operations: ['36-25=11']",
        ],
        threads=[
            ("\nNo solution found.\n\0", STOP),
            (f"\nx\n39,39 equal: Goal Reached\n{APR_PATH}\n\0", STOP),
        ],
        joined=(
            f"<s>Sub Call Budget: 10 {APR_ROOT}{APR_TRACE}<Sub Searches>\n"
            "<No Solution in Sub Search 0 at level 1 at Node #0,0,1>\n"
            f"<Goal Reached in Sub Search 1 at level 1 at Node #0,0>\n{APR_PATH}\n"
            "<End Sub Searches>\n"
        ),
    ),
    # A detail's tokens go where its parent forked; the parent has gone on with nothing injected.
    "apar": Published(
        prompt="Q",
        wrote="1. Cats[SplitMask]\n\n2. Dogs[SplitMask]",
        sees=["Q1. Cats[SplitMask]\n\n2. Dogs[SplitMask][SplitSop]"],
        threads=[(": bark\0", STOP)],
        joined="Q1. Cats[SplitMask]\n\n2. Dogs[SplitMask][SplitSop]: bark\n\nDone",
        meanwhile="\n\nDone",
    ),
    # <CHILD> stands in the place of <FORK>, which the thread does not see.
    "hpd": Published(
        prompt="document parsing with fork.",
        wrote="<BLOCK>title [1,2,3,4]<FORK>",
        sees=["document parsing with fork.<BLOCK>title [1,2,3,4]<CHILD>"],
        threads=[("A title\0", STOP)],
        joined="document parsing with fork.<BLOCK>title [1,2,3,4]<FORK><CHILD>A title<BLOCK>text",
        meanwhile="<BLOCK>text",
    ),
    # Only what stands between the tags returns, where the organizer asks for it.
    "asyncthink": Published(
        prompt="Q",
        wrote="<FORK-1>a</FORK-1> mm <FORK-2>How many {cats}?\nNow.</FORK-2>",
        sees=[
            (
                "<B>Work on this sub-query, and give what you find between <RETURN> and </RETURN>.\n"
                "How many {cats}?\nNow.<A>"
            )
        ],
        threads=[("let me see<RETURN>\ntwo\n</RETURN>", STOP)],
        joined=("Q<FORK-1>a</FORK-1> mm <FORK-2>How many {cats}?\nNow.</FORK-2> so <JOIN-2>\ntwo\n</JOIN-2>"),
        meanwhile=" so <JOIN-2>",
    ),
    # A promise's text stands where it was made; the thread has seen the promises before its own.
    "pasta": Published(
        prompt="<B>Q<A>",
        wrote=f"{PROMISE} and {PROMISE.replace('length', 'ends')}",
        sees=[f"<B>Q<A>{PROMISE} and {PROMISE.replace('length', 'ends')}<async>"],
        threads=[("(4, 4)</async>", STOP)],
        joined=f"<B>Q<A>{PROMISE} and {PROMISE.replace('length', 'ends')}<async>(4, 4)</async> so<sync/>",
        meanwhile=" so<sync/>",
    ),
    "skeleton": Published(
        prompt="<B>Tell.<A>",
        wrote="1. Two cats\n2) Dogs \n",
        sees=[
            "<B>Tell.<A>1. Two cats\n2) Dogs \n"
            f"<U>Write point {n} of this outline, and only that point, in one or two sentences.<A>{n}. {title}: "
            for n, title in (("1", "Two cats"), ("2", "Dogs"))
        ],
        threads=[("They purr.\0", STOP), ("They bark", LENGTH)],
        joined="<B>Tell.<A>1. Two cats\n2) Dogs \n\n\n1. Two cats: They purr.\n\n2. Dogs: They bark",
    ),
}
#: Where the fork before the one at the end lies in what a branch wrote.
FORKED_BEFORE = {
    "apar": "1. Cats[SplitMask]",
    "asyncthink": "<FORK-1>a</FORK-1>",
    "pasta": PROMISE,
    "threadweaver": THREADWEAVER[1],
}


@dataclass
class Spoken:
    """A built-in dialect and its text."""

    bound: BoundDialect
    text: Published
    tokenizer: ByteTokenizer
    context: list[int]
    plan: ForkPlan

    @property
    def dialect(self):
        return self.bound.dialect

    def branches(self) -> tuple[Family, list[Branch]]:
        """The threads, ended as published."""
        family = Family("r", self.dialect.limits)
        fork_len = len(self.context) if self.dialect.thread.context is Context.PARENT else 0
        offset = thread_offset(0, self.dialect.positions)
        threads = family.fork(family.root, self.plan, fork_len, waits=self.dialect.join.waits, offset=offset)
        for thread, (wrote, end) in zip(threads, self.text.threads, strict=True):
            family.generated(thread, self.tokenizer.encode(wrote))
            family.end(thread, end)
        return family, threads


def _spoken(name: str) -> Spoken:
    dialect, text = load(name), PUBLISHED[name]
    more = ["<BLOCK>", "<s>", "<think>", *TURNS]
    tokenizer = ByteTokenizer([*dialect.control_tokens, *more], TURNS)
    bound = BoundDialect.bind(dialect, tokenizer)
    context = tokenizer.encode(text.prompt + text.wrote)
    since = len(tokenizer.encode(text.prompt + FORKED_BEFORE.get(name, "")))
    plan = plan_fork(bound.dialect, dialect.limits, context, tokenizer, since=since, max_model_len=4096)
    assert isinstance(plan, ForkPlan)
    return Spoken(bound, text, tokenizer, context, plan)


@pytest.fixture(params=PUBLISHED)
def spoken(request) -> Spoken:
    return _spoken(request.param)


def test_every_built_in_dialect_has_its_text_here():
    assert sorted([*PUBLISHED, "explicit"]) == builtin_names()


def test_the_published_text_forks_where_it_ends_and_nowhere_before(spoken):
    """A trigger forks behind its last token, a turn where it ends; a prompt needs neither."""
    bound, at = spoken.bound, len(spoken.tokenizer.encode(spoken.text.prompt))
    prefixes = range(at + 1, len(spoken.context) + 1)
    forks = [n for n in prefixes if bound.triggers(spoken.context[:n])]
    ends = bound.ends_turn_with_fork(spoken.context[at:])
    if bound.dialect.fork_at is ForkAt.TRIGGER:
        assert forks[-1] == len(spoken.context)
        assert len(forks) == 1 + (bound.dialect.name in FORKED_BEFORE)
    else:
        assert forks == []
    assert ends is (bound.dialect.fork_at is ForkAt.END)


def test_each_thread_sees_what_it_was_trained_to_see(spoken):
    thread = spoken.dialect.thread
    seen = spoken.context if thread.context is Context.PARENT else []
    seen = seen[:-1] if thread.without_trigger else seen
    prompts = [spoken.tokenizer.decode([*seen, *t.header_ids]) for t in spoken.plan.threads]
    assert prompts == spoken.text.sees


def test_what_is_joined_is_what_the_model_was_trained_to_go_on_from(spoken):
    _, threads = spoken.branches()
    kind, tokenizer = spoken.dialect.join.kind, spoken.tokenizer
    meanwhile = tokenizer.encode(spoken.text.meanwhile)
    if kind == "splice":
        ids = [*spoken.context, *joined_ids(spoken.dialect, threads[0], tokenizer), *meanwhile]
    elif kind == "on_demand":
        ids = [*spoken.context, *meanwhile, *joined_ids(spoken.dialect, threads[0], tokenizer)]
    elif kind == "vote":
        vote = Vote(spoken.dialect.join.ballot, tokenizer, len(threads))
        for thread in threads:
            vote.read(thread)
        ids = written(vote.winner(threads)[0])
    else:
        context = [*spoken.context, *meanwhile]
        plan = spoken.dialect.join.plan(spoken.dialect, threads, context, tokenizer)
        ids = [*context[: plan.keep], *plan.token_ids]
    assert tokenizer.decode(ids) == spoken.text.joined


def test_the_end_of_each_thread_is_heard_behind_its_last_token_and_nowhere_before(spoken):
    for plan, (wrote, end) in zip(spoken.plan.threads, spoken.text.threads, strict=True):
        ids = spoken.tokenizer.encode(wrote)
        end_id = spoken.bound.end_id(plan)
        heard = [
            n for n in range(1, len(ids) + 1) if ids[n - 1] == end_id or spoken.bound.ends(plan, ids[:n])
        ]
        assert heard == ([len(ids)] if end is STOP and plan.end is not None else [])


def test_no_malformed_end_of_the_texts_here_ends_the_request(spoken):
    _, threads = spoken.branches()
    assert plan_join(spoken.dialect, threads, spoken.tokenizer).end is None


def test_an_organizer_asks_for_a_thread_by_its_number():
    spoken = _spoken("asyncthink")
    ids = spoken.tokenizer.encode(spoken.text.meanwhile)
    asked = [spoken.bound.asked_for(ids[:n]) for n in range(1, len(ids) + 1)]
    assert asked == [None] * (len(ids) - 1) + ["2"]


def test_a_sync_asks_for_all_that_was_promised():
    spoken = _spoken("pasta")
    ids = spoken.tokenizer.encode(spoken.text.meanwhile)
    asked = [spoken.bound.asked_for(ids[:n]) for n in range(1, len(ids) + 1)]
    assert asked == [None] * (len(ids) - 1) + [""]


def test_a_promise_says_its_topic_among_other_attributes_in_any_order():
    spoken = _spoken("pasta")
    for promise in ('<promise tokens="20" topic="a b"/>', '<promise\ntopic="a b" />'):
        context = spoken.tokenizer.encode(f"so {promise}")
        assert spoken.bound.triggers(context)
        plan = plan_fork(spoken.dialect, spoken.dialect.limits, context, spoken.tokenizer)
        assert isinstance(plan, ForkPlan)
        assert [t.title for t in plan.threads] == ["a b"]


def test_of_a_call_that_names_an_unknown_node_the_others_are_searched():
    spoken = _spoken("apr")
    call = APR_CALL.replace("#0,0,1", "#7")
    context = spoken.tokenizer.encode(spoken.text.prompt + APR_TRACE + call)
    plan = plan_fork(spoken.dialect, spoken.dialect.limits, context, spoken.tokenizer)
    assert isinstance(plan, ForkPlan)
    assert [t.number for t in plan.threads] == ["1"]
    assert plan.tolerated == (Deviation("unknown_message", Policy.DROP),)


def _planned(spoken: Spoken, wrote: str, begin: int = 0) -> ForkPlan | Refusal:
    context, limits = spoken.tokenizer.encode(wrote), spoken.dialect.limits
    return plan_fork(spoken.dialect, limits, context, spoken.tokenizer, begin=begin)


def _joined(spoken: Spoken, wrote: str, ends: list[tuple[str, ThreadEnd]]) -> str:
    """What stands behind ``wrote`` when the threads that it starts have ended so."""
    plan = _planned(spoken, wrote)
    assert isinstance(plan, ForkPlan)
    again = replace(spoken, plan=plan, text=replace(spoken.text, threads=ends))
    threads = again.branches()[1]
    context = spoken.tokenizer.encode(wrote)
    plan = spoken.dialect.join.plan(spoken.dialect, threads, context, spoken.tokenizer)
    return spoken.tokenizer.decode([*context[: plan.keep], *plan.token_ids])


def test_searches_of_apr_are_numbered_by_their_places_at_any_level_and_each_returns():
    call = (
        "<Calling Sub Searches>\n"
        "<Start Sub Search 4 at level 2> Moving to Node #0,0,1\n"
        "<Start Sub Search 4 at level 2> Moving to Node #0,0\n"
        "<End Calling Sub Searches>\n"
    )
    found = "\nGoal Reached\nMoving to Node #0,0\nGoal Reached\nby 2 steps\n\n\0"
    text = _joined(_spoken("apr"), APR_ROOT + APR_TRACE + call, [("\n\0", STOP), (found, STOP)])
    assert text.partition("<Sub Searches>\n")[2] == (
        "<No Solution in Sub Search 0 at level 1 at Node #0,0,1>\n"
        "<Goal Reached in Sub Search 1 at level 1 at Node #0,0>\n"
        "Moving to Node #0,0\nGoal Reached\nby 2 steps\n<End Sub Searches>\n"
    )


def test_a_long_search_of_apr_returns_what_it_found():
    """Searched by RE2: a search that backtracks would be given up."""
    apr, trace = load("apr"), "Exploring Operation: 50-11=39, Resulting Numbers: [2, 39]\n" * 150
    text = f"{trace}Goal Reached\n{APR_PATH}\n{trace}"
    assert last_match(apr.thread.returns, text) == f"{APR_PATH}\n{trace}".rstrip()


@pytest.mark.parametrize(
    ("name", "closed"), [("threadweaver", "\n</Thread>\n</Parallel>"), ("threadweaver-eval", "</Thread>")]
)
def test_how_the_two_clients_of_threadweaver_close_what_did_not(name, closed):
    ends = [(" ab</Thread>", STOP), (" c\0", EOS)]
    text = _joined(_spoken(name), THREADWEAVER[0], ends)
    assert text == f"{THREADWEAVER[0]}\n<Thread>\n1: ab</Thread><Thread>\n2: c{closed}"


@pytest.mark.parametrize(
    ("name", "wrote", "found"),
    [
        ("threadweaver", "</Outlines>", "sequential"),
        ("threadweaver", THREADWEAVER[0] + "so</Outlines>", ["1", "2"]),
        ("threadweaver", THREADWEAVER[0].replace("2:", "1:"), ["1"]),
        ("threadweaver-eval", "</Outlines>", "end_request"),
        ("threadweaver-eval", "<Outline>3: a</Outline></Outlines>", ["3"]),
        ("threadweaver-eval", THREADWEAVER[0].replace("2:", "1:"), ["1", "1"]),
        ("npr", NPR.replace("2:", "1:"), ["1", "1"]),
        ("npr", NPR.replace("<plan>", ""), "close_thread"),
        ("npr", NPR.replace("<guideline>", ""), "close_thread"),
    ],
)
def test_what_the_published_code_does_with_malformed_outlines(name, wrote, found):
    plan = _planned(_spoken(name), wrote)
    if isinstance(plan, Refusal):
        assert plan.policy == found
    else:
        assert [t.number for t in plan.threads] == found


def test_explicit_forks_of_itself_never(byte_tokenizer):
    bound = BoundDialect.bind(load("explicit"), byte_tokenizer([]))
    for text in ("", "(?!)", "<fork>", "1. a\n2. b\n"):
        ids = bound.tokenizer.encode(f"x{text}")
        assert not any(bound.triggers(ids[:n]) for n in range(1, len(ids) + 1))
        assert not bound.ends_turn_with_fork(ids)
    assert bound.dialect.control_tokens == ()


# ---- positions of stitched joins -----------------------------------------------------------


def _positions(spoken: Spoken) -> list[tuple[int, str]]:
    """The position of each joined token, counted from the last before the fork, and its text."""
    _, threads = spoken.branches()
    joined = plan_join(spoken.dialect, threads, spoken.tokenizer)
    at, lengths, out = len(spoken.context), [], []
    for thread in threads:
        ids = joined_ids(spoken.dialect, thread, spoken.tokenizer)
        skipped = num_skipped(thread, is_first=thread is threads[0])
        lengths.append(skipped + len(ids))
        out += [(at + skipped + i + thread.offset, t) for i, t in enumerate(ids)]
    offset = joined_offset(threads, lengths, at + len(out), spoken.dialect.positions)
    out += [(at + len(out) + offset + i, t) for i, t in enumerate(joined.closing_ids)]
    return [(position - (at - 1), spoken.tokenizer.decode([t])) for position, t in out]


@pytest.mark.parametrize(
    ("name", "open_tag", "end_tag", "closing"),
    [("multiverse", "<Path>", "</Path>", "<Conclusion>"), ("npr", "<step>", "</step>", "<takeaway>")],
)
def test_paths_begin_side_by_side_and_the_conclusion_goes_on_from_the_longest(
    name, open_tag, end_tag, closing
):
    """As the published engine counts: from g, the last tag of the outlines, and e, the last end tag's."""
    at = _positions(_spoken(name))
    assert [p for p, t in at if t == open_tag] == [2] * len(PUBLISHED[name].threads)
    assert at[:2] == [(1, "\n"), (2, open_tag)]
    ends = [p for p, t in at if t == end_tag]
    assert [(p, t) for p, t in at if p in {e + 1 for e in ends} and t == "\n"][-1] == (ends[-1] + 1, "\n")
    assert at[-2:] == [(max(ends) + 2, closing), (max(ends) + 3, "\n")]


def test_each_token_of_an_npr_join_stands_where_the_engine_puts_it():
    spoken = _spoken("npr")
    first = ["\n", "<step>", "\n", "1", ":", " ", "a", "b", "</step>", "\n"]
    second = ["<step>", "\n", "2", ":", " ", "c", "</step>", "\n"]
    assert _positions(spoken) == [
        *enumerate(first, 1),
        *enumerate(second, 2),
        (11, "<takeaway>"),
        (12, "\n"),
    ]


def test_paths_of_parathinker_begin_at_one_position_and_its_summary_behind_the_longest():
    at = _positions(_spoken("parathinker"))
    assert [p for p, t in at if t.startswith("<think")] == [1] * 4
    assert [p for p, t in at if t == "</think2>"] == [4]
    assert [p for p, t in at if t == "<summary>"] == [5]


def test_branches_of_aspd_share_positions_and_what_follows_stands_as_if_they_stood_in_a_row():
    at = _positions(_spoken("aspd"))
    assert [p for p, t in at if t == "<|branch|>"] == [1, 1]
    assert at[-2:] == [(len(at) - 1, "<|/para|>"), (len(at), "\n")]


# ---- headers that a stitched join can't shorten --------------------------------------------


class _Merging(ByteTokenizer):
    """Joins a newline to the tag behind it, as some tokenizers may."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.replace("\n<Path>", "\r"))


def test_a_tokenizer_that_joins_a_header_otherwise_is_refused_at_start():
    multiverse = load("multiverse")
    tags = list(multiverse.control_tokens)
    with pytest.raises(DialectError, match=r"'<Path>\\n\{n\}:' at the end of those of thread\.header"):
        BoundDialect.bind(multiverse, _Merging(tags))
    BoundDialect.bind(load("threadweaver"), _Merging([*load("threadweaver").control_tokens]))
    BoundDialect.bind(multiverse, ByteTokenizer(tags))
