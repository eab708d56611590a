from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.assembly import RULES
from forkjoin_scheduler.dialects.dialect import Outline
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.fork import (
    Announced,
    Deviation,
    ForkPlan,
    Refusal,
    ThreadPlan,
    has_room,
    plan_fork,
    read_outlines,
)

BLOCK = "<Outlines>\n<Outline>1: x</Outline>\n<Outline> 2 : y z</Outline>\n</Outlines>"


def _plan(dialect, tokenizer, text, limits=None, **facts):
    return plan_fork(dialect, limits or dialect.limits, tokenizer.encode(text), tokenizer, **facts)


def test_each_outline_becomes_a_thread_with_its_title_and_headers(dialect, tokenizer):
    plan = _plan(dialect, tokenizer, f"<Outlines><Outline>9: old</Outline></Outlines>{BLOCK}")
    assert isinstance(plan, ForkPlan)
    assert [(t.number, t.title) for t in plan.threads] == [("1", "x"), ("2", "y z")]
    headers = [tokenizer.decode(list(t.header_ids)) for t in plan.threads]
    joined = [tokenizer.decode(list(t.joined_header_ids)) for t in plan.threads]
    assert headers == ["\n<Thread>\n1:", "\n<Thread>\n2:"]
    assert joined == ["\n<Thread>\n1:", "<Thread>\n2:"]


@pytest.mark.parametrize(("name", "paths"), [("parathinker", [1, 2, 3, 4]), ("parallel-r1", [0, 0])])
def test_only_a_dialect_with_path_embeddings_numbers_paths(byte_tokenizer, name, paths):
    dialect = load(name)
    plan = _plan(dialect, byte_tokenizer(list(dialect.control_tokens)), "q")
    assert [thread.path for thread in plan.threads] == paths


@pytest.mark.parametrize("wrote", ["</Outlines>", "so</Outlines>", "<Outline>1: x</Outline></Outlines>"])
def test_outlines_are_read_only_from_what_the_branch_wrote(dialect, tokenizer, wrote):
    prompt = BLOCK.removesuffix("</Outlines>")
    plan = _plan(dialect, tokenizer, prompt + wrote, since=len(tokenizer.encode(prompt)))
    assert isinstance(plan, Refusal)
    assert plan.reason == "no_outline"
    plan = _plan(dialect, tokenizer, prompt + BLOCK, since=len(tokenizer.encode(prompt)))
    assert isinstance(plan, ForkPlan)


def test_duplicates_are_dropped_and_counted_and_the_first_title_stays(dialect, tokenizer):
    text = "<Outlines><Outline>1: a</Outline><Outline>1: b</Outline></Outlines>"
    plan = _plan(dialect, tokenizer, text)
    assert isinstance(plan, ForkPlan)
    assert ([t.title for t in plan.threads], plan.num_duplicates) == (["a"], 1)


def test_where_threads_have_no_numbers_their_titles_tell_them_apart(make_dialect, byte_tokenizer):
    outline = {"pattern": "<T>(?P<title>[^<]*)</T>"}
    dialect = make_dialect(outline=outline, trigger="<G>", thread={"header": "{n}: "})
    text = "<T>cats</T><T></T><T> dogs </T><T>cats</T><G>"
    plan = _plan(dialect, byte_tokenizer(["<T>", "</T>", "<G>"]), text)
    assert isinstance(plan, ForkPlan)
    assert [(t.number, t.title) for t in plan.threads] == [("cats", "cats"), ("dogs", "dogs")]
    assert plan.num_duplicates == 1


@pytest.mark.parametrize(
    ("text", "limits", "num_forks", "reason"),
    [
        ("</Outlines>", Limits(), 0, "no_outline"),
        ("<Outlines>1: x</Outlines>", Limits(), 0, "no_outline"),
        (BLOCK, Limits(max_threads_per_fork=1), 0, "too_many_threads"),
        (BLOCK, Limits(max_forks=2), 2, "too_many_forks"),
    ],
    ids=["trigger_alone", "no_tag", "threads", "forks"],
)
def test_a_fork_is_refused_with_its_reason(dialect, tokenizer, text, limits, num_forks, reason):
    plan = _plan(dialect, tokenizer, text, limits, num_forks=num_forks)
    assert isinstance(plan, Refusal)
    assert plan.reason == reason


@pytest.mark.parametrize(
    ("inside", "numbers"),
    [
        ("<Outline>1: x\n<Outline>2: y", ["1", "2"]),
        ("<Outline>1: x</Outline><Outline>2", ["1"]),
        ("<Outline>: x</Outline><Outline>2: y</Outline>", ["2"]),
        ("<Outline>2: x</Outline><Outline>1: y</Outline><Outline>2: z</Outline>", ["2", "1"]),
        ("<Outline>1.2: x</Outline><Outline>1.10: y</Outline>", ["1.2", "1.10"]),
        ("<Outline>\n 1 \n:x</Outline>", ["1"]),
    ],
    ids=["unclosed", "cut_off", "no_number", "order_of_writing", "nested_numbers", "spaces"],
)
def test_malformed_outlines_fork_into_those_that_can_be_read(dialect, tokenizer, inside, numbers):
    plan = _plan(dialect, tokenizer, f"<Outlines>{inside}</Outlines>")
    assert isinstance(plan, ForkPlan)
    assert [t.number for t in plan.threads] == numbers


def test_an_unclosed_outlines_title_ends_at_the_next_tag(dialect, tokenizer):
    plan = _plan(dialect, tokenizer, "<Outlines><Outline>1: a b\n<Outline>2: c</Outlines>")
    assert [t.title for t in plan.threads] == ["a b", "c"]


def test_outlines_before_the_opening_tag_do_not_count(dialect, tokenizer):
    plan = _plan(dialect, tokenizer, "<Outline>1: x</Outline><Outlines><Outline>2: y</Outline></Outlines>")
    assert [t.number for t in plan.threads] == ["2"]


def test_duplicates_do_not_count_towards_the_limit_on_threads(dialect, tokenizer):
    text = "<Outlines>" + "<Outline>1: x</Outline>" * 5 + "</Outlines>"
    plan = _plan(dialect, tokenizer, text, Limits(max_threads_per_fork=1))
    assert isinstance(plan, ForkPlan)
    assert (len(plan.threads), plan.num_duplicates) == (1, 4)


@pytest.mark.parametrize("width", [1, 50])
def test_as_many_threads_as_the_limit_allows_are_forked(dialect, tokenizer, width):
    text = "".join(f"<Outline>{n}: x</Outline>" for n in range(width))
    plan = _plan(dialect, tokenizer, f"<Outlines>{text}</Outlines>", Limits(max_threads_per_fork=width))
    assert isinstance(plan, ForkPlan)
    assert len(plan.threads) == width


@pytest.mark.parametrize("reason", ["no_outline", "too_many_threads", "too_many_forks"])
def test_a_refusal_carries_the_policy_that_the_dialect_names_for_it(dialect, tokenizer, reason):
    policies = dialect.policies.model_copy(update={reason: Policy.END_REQUEST})
    dialect = dialect.model_copy(update={"policies": policies})
    text = "<Outlines></Outlines>" if reason == "no_outline" else BLOCK
    limits = Limits(max_threads_per_fork=1, max_forks=0 if reason == "too_many_forks" else 1)
    assert _plan(dialect, tokenizer, text, limits) == Refusal(reason, Policy.END_REQUEST)


UNOPENED = f"{BLOCK}so <Outline>3: z</Outline></Outlines>"


@pytest.mark.parametrize(
    ("policy", "numbers"),
    [("unread", None), ("reread", ["1", "2", "3"]), ("read_all", ["3"])],
)
def test_a_trigger_that_follows_no_opening_tag_of_its_own(dialect, tokenizer, policy, numbers):
    policies = dialect.policies.model_copy(update={"unopened_outline": Policy(policy)})
    of = dialect.model_copy(update={"policies": policies})
    plan = _plan(of, tokenizer, UNOPENED, since=len(tokenizer.encode(BLOCK)), begin=0)
    if numbers is None:
        assert plan == Refusal("no_outline", Policy.SEQUENTIAL)
        return
    assert [t.number for t in plan.threads] == numbers
    assert plan.tolerated == (Deviation("unopened_outline", Policy(policy)),)


def test_outlines_of_the_prompt_are_never_read_again(dialect, tokenizer):
    assert dialect.policies.unopened_outline is Policy.REREAD
    at = len(tokenizer.encode(BLOCK))
    assert _plan(dialect, tokenizer, UNOPENED, since=at, begin=at) == Refusal("no_outline", Policy.SEQUENTIAL)


def test_outlines_of_one_number_start_a_thread_each_where_the_dialect_says_so(dialect, tokenizer):
    policies = dialect.policies.model_copy(update={"duplicate_outline": Policy.KEEP})
    of = dialect.model_copy(update={"policies": policies})
    text = "<Outlines><Outline>1: a</Outline><Outline>2: b</Outline><Outline>1: c</Outline></Outlines>"
    plan = _plan(of, tokenizer, text)
    assert [t.title for t in plan.threads] == ["a", "b", "c"]
    assert plan.tolerated == (Deviation("duplicate_outline", Policy.KEEP, 1),)


@pytest.mark.parametrize(("num_left", "forks"), [(30, True), (29, False), (None, True)])
def test_a_fork_near_the_end_of_max_tokens_is_refused(make_dialect, byte_tokenizer, num_left, forks):
    plan = _plan(make_dialect(min_left=30), byte_tokenizer([]), "<F>", num_left=num_left)
    assert isinstance(plan, ForkPlan) is forks
    assert forks or plan == Refusal("no_room", Policy.SEQUENTIAL)


@pytest.mark.parametrize(("depth", "forks"), [(0, True), (1, True), (2, False)])
def test_a_thread_forks_as_deep_as_the_dialect_says(dialect, tokenizer, depth, forks):
    nested = dialect.model_copy(update={"max_depth": 2})
    plan = _plan(nested, tokenizer, BLOCK, depth=depth)
    assert isinstance(plan, ForkPlan) is forks
    assert forks or plan == Refusal("nested_fork", Policy.SEQUENTIAL)


def test_a_fork_that_leaves_a_thread_no_token_is_refused(dialect, tokenizer):
    context = len(tokenizer.encode(BLOCK))
    header = len(tokenizer.encode("\n<Thread>\n1:"))
    assert isinstance(_plan(dialect, tokenizer, BLOCK, max_model_len=context + header + 1), ForkPlan)
    refused = _plan(dialect, tokenizer, BLOCK, max_model_len=context + header)
    assert refused == Refusal("no_room", Policy.SEQUENTIAL)


def test_duplicates_refuse_the_fork_where_the_dialect_says_so(dialect, tokenizer):
    policies = dialect.policies.model_copy(update={"duplicate_outline": Policy.SEQUENTIAL})
    strict = dialect.model_copy(update={"policies": policies})
    text = "<Outlines><Outline>1: a</Outline><Outline>1: b</Outline></Outlines>"
    assert _plan(strict, tokenizer, text) == Refusal("duplicate_outline", Policy.SEQUENTIAL)


@pytest.mark.parametrize(("limit", "width"), [(None, 2), (8, 2), (1, 1)])
def test_without_outlines_as_many_threads_fork_as_the_dialect_is_wide(byte_tokenizer, limit, width):
    parallel = load("parallel-r1")
    tokenizer = byte_tokenizer(list(parallel.control_tokens))
    plan = _plan(parallel, tokenizer, "x<Parallel>", Limits(max_threads_per_fork=limit))
    assert isinstance(plan, ForkPlan)
    assert [tokenizer.decode(list(t.header_ids)) for t in plan.threads] == ["<Path>"] * width


CALL = r"<(?P<number>\d+)>(?P<message>[^<]*)"


def test_what_the_model_says_to_a_thread_fills_its_header_and_is_not_filled_itself(
    make_dialect, byte_tokenizer
):
    calls = make_dialect(
        outline={"pattern": CALL},
        thread={"context": "header", "header": "{n}/{message}/{title}{{n}}", "end": "</{n}>"},
        tags_are="text",
    )
    plan = _plan(calls, byte_tokenizer([]), "<1>do {n}<2>")
    assert [(bytes(t.header_ids).decode(), t.end) for t in plan.threads] == [
        ("1/do {n}/{n}", "</1>"),
        ("2//{n}", "</2>"),
    ]


def test_an_outline_without_a_number_starts_no_thread(make_dialect, byte_tokenizer):
    """The group took no part in the first match, and is empty in the second."""
    outline = {"pattern": r"- (?:(?P<number>\d*)\.|\*) ?(?P<title>\w+)"}
    listing = make_dialect(outline=outline, tags_are="text")
    plan = _plan(listing, byte_tokenizer([]), "- * a\n- . b\n- 7. c")
    assert [(t.number, t.title) for t in plan.threads] == [("7", "c")]
    refused = _plan(listing, byte_tokenizer([]), "- * a\n- . b")
    assert refused == Refusal("no_outline", Policy.SEQUENTIAL)


def test_titles_and_messages_that_take_no_part_are_empty():
    outline = Outline(pattern=r"(?P<number>\d)(?::(?P<title>\w+))?(?:!(?P<message>\w+))?")
    assert read_outlines(outline, "1 2:x 3!y") == [
        Announced("1"),
        Announced("2", "x"),
        Announced("3", "", "y"),
    ]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1 CALL 2 CALL 3", ["3"]), ("1 2", []), ("1 CALL", [])],
    ids=["last", "never_opened", "nothing_behind"],
)
def test_without_its_opening_text_nothing_is_announced(text, numbers):
    outline = Outline(opens="CALL", pattern=r"(?P<number>\d)")
    assert [a.number for a in read_outlines(outline, text)] == numbers


def test_outlines_without_an_opening_are_read_in_what_the_branch_wrote_only(make_dialect, byte_tokenizer):
    listing = make_dialect(outline={"pattern": r"(?P<number>\d)\."}, tags_are="text")
    plan = _plan(listing, byte_tokenizer([]), "1. 2. 3.", since=len("1. 2."))
    assert [t.number for t in plan.threads] == ["3"]


@pytest.mark.parametrize(
    ("thread", "joined"),
    [
        ({}, ["<T>1:", "<T>2:"]),
        ({"joined_header": "<J>{n}"}, ["<T>1:", "<J>2"]),
        ({"first_joined_header": "<A>{n}"}, ["<A>1", "<T>2:"]),
        ({"first_joined_header": "", "joined_header": ", "}, ["", ", "]),
    ],
    ids=["same", "later_ones", "first_one", "empty_first"],
)
def test_joined_headers_are_those_of_the_threads_unless_the_dialect_has_others(
    make_dialect, byte_tokenizer, thread, joined
):
    dialect = make_dialect(thread={"header": "<T>{n}:"} | thread)
    plan = _plan(dialect, byte_tokenizer([]), "<F>")
    assert [bytes(t.joined_header_ids).decode() for t in plan.threads] == joined
    assert [bytes(t.header_ids).decode() for t in plan.threads] == ["<T>1:", "<T>2:"]


def test_a_thread_that_ends_with_its_turn_has_no_end_tag(make_dialect, byte_tokenizer):
    assert [t.end for t in _plan(make_dialect(), byte_tokenizer([]), "<F>").threads] == [None, None]


@pytest.mark.parametrize(("room", "fits"), [(9, False), (10, True)])
def test_a_dialect_may_want_more_room_than_one_token_a_thread(room, fits):
    threads = (ThreadPlan("1", "", (1, 2), (1, 2)), ThreadPlan("2", "", (1, 2, 3), (1,)))
    assert has_room(threads, 6, room, min_room=1) is fits
    assert has_room(threads, 6, room + 2, min_room=6) is fits
    assert has_room(threads, 6, None, min_room=10**9)


@pytest.mark.parametrize(("room", "fits"), [(11, False), (12, True)])
def test_a_stitched_thread_must_have_room_to_close(make_dialect, byte_tokenizer, room, fits):
    thread = {"header": "<T>{n}:", "end": "!", "close": "!", "tail": "\n"}
    mine = make_dialect(join={"kind": "stitch"}, thread=thread)
    # 3 of the trigger, 5 of the header, one written, 2 that close it, and the next
    plan = _plan(mine, byte_tokenizer([]), "<F>", max_model_len=room)
    assert isinstance(plan, ForkPlan) is fits


def test_min_room_is_asked_for_at_the_fork(make_dialect, byte_tokenizer):
    roomy = make_dialect(min_room=100)
    refused = _plan(roomy, byte_tokenizer([]), "<F>", max_model_len=102)
    assert refused == Refusal("no_room", Policy.SEQUENTIAL)
    assert isinstance(_plan(roomy, byte_tokenizer([]), "<F>", max_model_len=103), ForkPlan)


def test_a_nested_fork_is_counted_with_its_own_outlines(byte_tokenizer):
    multiverse = load("multiverse")
    tokenizer = byte_tokenizer(list(multiverse.control_tokens))
    outer = "<Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>\n<Path>\n2:"
    inner = "<Goal><Outline>2.1: c</Outline><Outline>2.2: d</Outline></Goal>"
    plan = _plan(multiverse, tokenizer, outer + inner, depth=1, num_forks=1)
    assert [t.number for t in plan.threads] == ["2.1", "2.2"]
    assert [tokenizer.decode(list(t.header_ids)) for t in plan.threads] == [
        "\n<Path>\n2.1:",
        "\n<Path>\n2.2:",
    ]
    assert _plan(multiverse, tokenizer, outer + "</Goal>", depth=1).reason == "no_outline"
    assert _plan(multiverse, tokenizer, outer + inner, depth=6).reason == "nested_fork"


def test_a_search_for_outlines_is_given_up_in_time():
    outline = Outline(pattern=r"(?P<number>(a|aa)+)b")  # would search for longer than the test is let run
    assert read_outlines(outline, "a" * 5000) == []


def test_empty_lines_cost_skeletons_outline_no_time():
    # each was searched through to the last of them: a second for 8,000
    outline = load("skeleton").outline
    assert [a.number for a in read_outlines(outline, "\n" * 100_000 + " 1. a\n2) b")] == ["1", "2"]


def test_a_dialects_rule_reads_the_context_once_however_many_outlines_name_it(byte_tokenizer, monkeypatch):
    dialect, reads, rule = load("apr"), [], RULES["countdown_node"]

    def counted(*given):
        reads.append(given)
        return rule(*given)

    monkeypatch.setitem(RULES, "countdown_node", counted)
    nodes = [f"Moving to Node #{n}\nCurrent State: 9:[{n}], Operations: []\n" for n in range(40)]
    calls = [f"<Start Sub Search {n} at level 1> Moving to Node #{n}\n" for n in range(40)]
    text = "".join([*nodes, "<Calling Sub Searches>\n", *calls, "<End Calling Sub Searches>\n"])
    plan = _plan(dialect, byte_tokenizer([]), text)
    assert plan == Refusal("too_many_threads", dialect.policies.too_many_threads)
    assert len(reads) == 1
    plan = _plan(dialect, byte_tokenizer([]), text, Limits(max_threads_per_fork=40))
    assert byte_tokenizer([]).decode(list(plan.threads[7].header_ids)) == f"<s>{nodes[7].rstrip()}"
