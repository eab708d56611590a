from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.dialects import patterns
from forkjoin_scheduler.dialects.patterns import MATCH_TIMEOUT_S
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.fork import ForkPlan, ThreadPlan, plan_fork
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.joins.joined import (
    body,
    close_block_ids,
    cut_last,
    end_policy,
    joined_ids,
    last_match,
    plan_join,
    written,
)


def _ended(plan: ThreadPlan, token_ids: list[int], *, end=ThreadEnd.STOP, position: int = 0) -> Branch:
    """A thread that has ended after ``token_ids``."""
    return Branch(
        f"r#{position}",
        plan=plan,
        index=position,
        sibling_index=position,
        state=BranchState.ENDED,
        end=end,
        token_ids=token_ids,
    )


@pytest.fixture
def threads(dialect, tokenizer):
    text = "<Outlines><Outline>1: x</Outline><Outline>2: y</Outline></Outlines>"
    plan = plan_fork(dialect, dialect.limits, tokenizer.encode(text), tokenizer)
    return [_ended(p, tokenizer.encode(f"t{i}</Thread>"), position=i) for i, p in enumerate(plan.threads)]


def test_the_joined_text_has_no_space_between_threads_and_the_join_text_behind(dialect, tokenizer, threads):
    plan = plan_join(dialect, threads, tokenizer)
    assert tokenizer.decode(list(plan.token_ids)) == "\n<Thread>\n1:t0</Thread><Thread>\n2:t1</Thread>\n"
    assert plan.end is None


@pytest.mark.parametrize("end", [ThreadEnd.EOS, ThreadEnd.LENGTH])
def test_a_thread_that_did_not_close_is_closed_and_the_block_too(dialect, tokenizer, threads, end):
    threads[1].end = end
    plan = plan_join(dialect, threads, tokenizer)
    text = tokenizer.decode(list(plan.token_ids))
    assert text.endswith("\n</Thread>\n</Parallel>")
    assert plan.end is end


@pytest.mark.parametrize("end", [ThreadEnd.EOS, ThreadEnd.LENGTH])
def test_a_policy_that_closes_the_thread_lets_the_family_go_on(dialect, tokenizer, threads, end):
    closing = {"thread_eos": Policy.CLOSE_THREAD, "thread_length": Policy.CLOSE_THREAD}
    dialect = dialect.model_copy(update={"policies": dialect.policies.model_copy(update=closing)})
    threads[0].token_ids, threads[0].end = tokenizer.encode("t0!"), end
    plan = plan_join(dialect, threads, tokenizer)
    kept = "t0" if end is ThreadEnd.EOS else "t0!"
    expected = f"\n<Thread>\n1:{kept}\n</Thread><Thread>\n2:t1</Thread>\n"
    assert (tokenizer.decode(list(plan.token_ids)), plan.end) == (expected, None)


@pytest.mark.parametrize("end", [ThreadEnd.STOP, ThreadEnd.EOS, ThreadEnd.LENGTH])
@pytest.mark.parametrize("text", ["x", "xyz"])
def test_what_thread_one_has_computed_is_a_prefix_of_the_join_however_it_ended(
    dialect, tokenizer, threads, end, text
):
    first = threads[0]
    first.token_ids, first.end = tokenizer.encode(text), end
    plan = plan_join(dialect, threads, tokenizer)
    computed = [*first.plan.header_ids, *first.token_ids[:-1]]
    assert list(plan.token_ids[: len(computed)]) == computed


def test_the_first_thread_in_outline_order_says_why_the_request_ends(dialect, tokenizer, threads):
    threads[0].end, threads[1].end = ThreadEnd.LENGTH, ThreadEnd.EOS
    assert plan_join(dialect, threads, tokenizer).end is ThreadEnd.LENGTH


def test_the_closing_is_the_part_behind_the_last_thread(dialect, tokenizer, threads):
    plan = plan_join(dialect, threads, tokenizer)
    assert tokenizer.decode(list(plan.closing_ids)) == "\n"
    threads[1].end = ThreadEnd.LENGTH
    plan = plan_join(dialect, threads, tokenizer)
    assert tokenizer.decode(list(plan.closing_ids)) == "\n</Parallel>"
    assert plan.token_ids[-len(plan.closing_ids) :] == plan.closing_ids


# ---- texts of threads that end in other ways -----------------------------------------------


def _texts(dialect, tokenizer, *texts: str, end=ThreadEnd.STOP) -> list[Branch]:
    """The ended threads of a fork of ``dialect`` (no outlines) that wrote ``texts``, and their ends."""
    wide = dialect.model_copy(update={"width": len(texts)})
    plan = plan_fork(wide, wide.limits, tokenizer.encode("<F>"), tokenizer)
    assert isinstance(plan, ForkPlan)
    tag = [0] if plan.threads[0].end is None else tokenizer.encode(plan.threads[0].end)
    return [
        _ended(p, [*tokenizer.encode(text), *(tag if end is ThreadEnd.STOP else [])], end=end, position=i)
        for i, (p, text) in enumerate(zip(plan.threads, texts, strict=True))
    ]


@pytest.mark.parametrize(
    ("end", "thread_end", "token_ids", "expected"),
    [
        (ThreadEnd.STOP, "!", b"ab!", "ab!"),
        (ThreadEnd.STOP, None, b"ab\0", "ab]"),
        (ThreadEnd.EOS, "!", b"ab\0", "ab]"),
        (ThreadEnd.EOS, "!", b"\0", "]"),
        (ThreadEnd.LENGTH, "!", b"ab", "ab]"),
        (ThreadEnd.LENGTH, None, b"ab", "ab]"),
        (ThreadEnd.CANCELLED, "!", b"", "]"),
    ],
    ids=["tag", "turn", "eos", "eos_alone", "length", "length_of_turn", "cancelled"],
)
def test_a_body_is_the_text_without_an_end_of_sequence_closed_once(
    make_dialect, byte_tokenizer, end, thread_end, token_ids, expected
):
    dialect = make_dialect(thread={"header": "x", "end": thread_end, "close": "]"})
    thread = _ended(ThreadPlan("1", "", (), (), thread_end), list(token_ids), end=end)
    assert bytes(body(dialect, thread, byte_tokenizer([]))).decode() == expected
    assert bytes(written(thread)).decode() == expected.removesuffix("]")


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"\d+", "1 22 333", "333"),
        (r"=(?P<result>\d)", "=1 =2 3", "2"),
        (r"=(?P<result>\d)?", "=1 =x", None),
        (r"\d", "none", None),
        (r"\s\w+\s", "a b ", " b "),
        (r"b.", "b\ud800", "b?"),
    ],
    ids=["whole", "group", "group_without_part", "no_match", "keeps_space", "no_unicode"],
)
def test_the_last_match_counts_its_group_before_the_whole(pattern, text, expected):
    assert last_match(pattern, text) == expected


@pytest.mark.parametrize(
    ("thread", "expected"),
    [
        ({"returns": r"=(?P<result>\w+)"}, "j2;1"),
        ({"returns": r"=(?P<result>\w+)", "failed_header": "none of {n}"}, "j2;1"),
        ({"returns": "nowhere"}, "j;1"),
        ({"returns": "nowhere", "failed_header": "none of {n}"}, "none of 1"),
        ({"returns": "nowhere", "failed_header": ""}, ""),
        ({}, "j=1 =2!]"),
        ({"failed_header": "none of {n}"}, "j=1 =2!]"),
    ],
    ids=[
        "found",
        "found_not_failed",
        "not_found",
        "failed",
        "failed_without_a_word",
        "all_of_it",
        "all_never_fails",
    ],
)
def test_of_a_thread_returns_what_the_dialect_cuts_out(make_dialect, byte_tokenizer, thread, expected):
    thread = {
        "header": "x",
        "first_joined_header": "j",
        "end": "!",
        "tail": "]",
        "returned_end": ";{n}",
    } | thread
    dialect, tokenizer = make_dialect(thread=thread), byte_tokenizer([])
    (ended,) = _texts(dialect, tokenizer, "=1 =2")
    assert bytes(joined_ids(dialect, ended, tokenizer)).decode() == expected


#: Fails only after trying each way to part a row of a's.
CATASTROPHIC = r"(a|aa)+$|b"


def test_a_search_that_takes_too_long_finds_nothing(monkeypatch):
    text = "b" + "a" * 60 + "!"
    assert last_match("b", text) == "b"
    monkeypatch.setattr(patterns, "MATCH_TIMEOUT_S", 1e-3)
    assert last_match(CATASTROPHIC, text) is None


@pytest.mark.parametrize(("own_s", "found"), [(0.001, ["a"]), (0.002, [])])
def test_what_other_threads_of_the_process_take_ends_no_search(monkeypatch, own_s, found):
    """``regex`` counts it: it ends the first three tries, in each of which the search itself took ``own_s``."""
    own, given = [0.0], []

    def finditer(pattern, text, timeout):
        assert not gc.isenabled()
        given.append(timeout)
        own[0] += own_s
        if len(given) <= 3:
            raise TimeoutError
        return [text]

    monkeypatch.setattr(patterns, "time", SimpleNamespace(thread_time=lambda: own[0]))
    monkeypatch.setattr(patterns, "regex", SimpleNamespace(finditer=finditer))
    assert patterns.find_all(CATASTROPHIC, "a") == found
    assert given == [MATCH_TIMEOUT_S * 2**n for n in range(4 if found else 3)]
    assert gc.isenabled()


def test_a_thread_in_which_the_search_takes_too_long_returns_nothing(
    monkeypatch, make_dialect, byte_tokenizer
):
    monkeypatch.setattr(patterns, "MATCH_TIMEOUT_S", 1e-3)
    tokenizer = byte_tokenizer([])
    returning = make_dialect(thread={"header": "x", "returns": CATASTROPHIC, "failed_header": "none"})
    (slow,) = _texts(returning, tokenizer, "b" + "a" * 60 + "!")
    assert bytes(joined_ids(returning, slow, tokenizer)).decode() == "none"


@pytest.mark.parametrize("pattern", ["a{i", "a{s<=", "a{e}+", "[[:alpha:]"])
def test_a_pattern_that_can_not_be_searched_for_is_refused_before_it_is(make_dialect, pattern):
    with pytest.raises(ValueError, match="not a regular expression"):
        make_dialect(thread={"header": "x", "returns": pattern})


@pytest.mark.parametrize("pattern", [r"(a)\1", "(?=a)", "a++", "(", "a{1001}"])
def test_a_vote_that_takes_no_linear_time_is_refused(make_dialect, pattern):
    with pytest.raises(ValueError, match="not a regular expression of RE2's"):
        make_dialect(join={"kind": "vote", "result": pattern})


@pytest.mark.parametrize("pattern", ["[ab]{900}c", r"(?:[a-b]{1,30} ?){1,30}", r"\p{L}{9}"])
def test_a_vote_whose_linear_time_is_long_is_refused(make_dialect, pattern):
    with pytest.raises(ValueError, match="at most 100 instructions"):
        make_dialect(join={"kind": "vote", "result": pattern})


# ---- ends, closes, tails -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (ThreadEnd.STOP, "ab!~"),
        (ThreadEnd.EOS, "ab]~"),
        (ThreadEnd.LENGTH, "ab!]~"),
        (ThreadEnd.CUT, "ab!"),
    ],
)
def test_a_tail_stands_behind_every_thread_but_one_that_is_cut_off_where_it_is(
    make_dialect, byte_tokenizer, end, expected
):
    dialect = make_dialect(thread={"header": "x", "end": "!", "close": "]", "tail": "~"})
    thread = _ended(ThreadPlan("1", "", (), (), "!"), list(b"ab!"), end=end)
    assert bytes(body(dialect, thread, byte_tokenizer([]))).decode() == expected


def test_a_thread_without_an_end_tag_is_closed_and_gets_its_tail(make_dialect, byte_tokenizer):
    dialect = make_dialect(thread={"header": "x", "close": "]", "tail": "~"})
    thread = _ended(ThreadPlan("1", "", (), ()), list(b"ab\0"))
    assert bytes(body(dialect, thread, byte_tokenizer([]))).decode() == "ab]~"


@pytest.mark.parametrize("closing", [Policy.END_REQUEST, Policy.CLOSE_THREAD])
def test_a_thread_that_was_cut_off_is_no_malformed_one(make_dialect, byte_tokenizer, closing):
    dialect = make_dialect(
        thread={"header": "x", "end": "!"}, policies={"thread_eos": closing, "thread_length": closing}
    )
    tokenizer = byte_tokenizer([])
    assert end_policy(dialect, ThreadEnd.CUT) is None
    assert plan_join(dialect, _texts(dialect, tokenizer, "a", end=ThreadEnd.CUT), tokenizer).end is None


def test_the_joined_text_opens_has_its_own_first_header_and_returns_in_order(make_dialect, byte_tokenizer):
    dialect = make_dialect(
        thread={
            "header": "x",
            "first_joined_header": "",
            "joined_header": ", ",
            "end": "!",
            "returns": r"\d",
        },
        join={"opened": "<got ", "text": ">"},
    )
    tokenizer = byte_tokenizer([])
    plan = plan_join(dialect, _texts(dialect, tokenizer, "a 1", "b 2", "none"), tokenizer)
    assert bytes(plan.token_ids).decode() == "<got 1, 2, >"
    assert (bytes(plan.closing_ids), plan.end, plan.keep) == (b">", None, None)


def test_a_thread_that_its_request_stopped_or_cancelled_is_no_malformed_one(make_dialect, byte_tokenizer):
    tokenizer = byte_tokenizer([])
    dialect = make_dialect(thread={"header": "x", "end": "!"})
    for end in (ThreadEnd.REQUEST_STOP, ThreadEnd.CANCELLED, ThreadEnd.CLIENT_CANCELLED):
        assert plan_join(dialect, _texts(dialect, tokenizer, "a", end=end), tokenizer).end is None


def test_what_closes_a_block_is_the_dialects(dialect, tokenizer):
    assert tokenizer.decode(close_block_ids(dialect, tokenizer)) == "\n</Parallel>"


# ---- a call is rewritten -------------------------------------------------------------------


@pytest.fixture
def calling(make_dialect):
    return make_dialect(
        tags_are="text",
        outline={"pattern": r"(?P<number>\d)"},
        thread={"header": "{n}", "joined_header": ""},
        join={"kind": "rewrite", "opens": "<call>", "opened": "<got>", "text": "</got>"},
    )


def _rewritten(dialect, tokenizer, context: list[int], *texts: str):
    threads = [_ended(ThreadPlan("1", "", (), ()), [*tokenizer.encode(t), 0]) for t in texts]
    plan = dialect.join.plan(dialect, threads, context, tokenizer)
    assert plan.keep is not None
    return plan, tokenizer.decode([*context[: plan.keep], *plan.token_ids])


def test_the_last_call_and_all_behind_it_become_what_the_threads_return(calling, byte_tokenizer):
    tokenizer = byte_tokenizer([])
    context = tokenizer.encode("a <call>1</call> b <call>2</call> ")
    plan, text = _rewritten(calling, tokenizer, context, "x", "y")
    assert (plan.keep, text) == (len("a <call>1</call> b "), "a <call>1</call> b <got>xy</got>")
    assert bytes(plan.closing_ids) == b"</got>"


def test_text_before_a_call_in_the_token_that_it_begins_in_is_kept(calling, piece_tokenizer):
    tokenizer = piece_tokenizer(["b <ca", "ll>1", "</call>"])
    context = tokenizer.encode("aä b <call>1</call>")
    plan, text = _rewritten(calling, tokenizer, context, "x")
    assert text == "aä b <got>x</got>"
    assert plan.keep == len(tokenizer.encode("aä "))


def test_where_no_call_is_found_nothing_is_cut(calling, byte_tokenizer):
    tokenizer = byte_tokenizer([])
    plan, text = _rewritten(calling, tokenizer, tokenizer.encode("no cal"), "x")
    assert (plan.keep, text) == (6, "no cal<got>x</got>")


def test_a_call_that_is_all_of_the_context_leaves_nothing_before(calling, byte_tokenizer):
    tokenizer = byte_tokenizer([])
    plan, text = _rewritten(calling, tokenizer, tokenizer.encode("<call>"), "x")
    assert (plan.keep, text) == (0, "<got>x</got>")


def test_a_call_that_is_not_there_is_not_looked_for_in_every_tail_of_the_context(calling, byte_tokenizer):
    tokenizer, decoded = byte_tokenizer([]), []
    decode = tokenizer.decode
    tokenizer.decode = lambda ids: decoded.append(len(ids)) or decode(ids)
    _rewritten(calling, tokenizer, [ord("a")] * 1000, "x")
    assert sum(decoded) < 20 * 1000


@pytest.mark.parametrize("written", ["", "a", "a<call>b<call>", "é<call>", "a<call>é", "é é<call>x<call"])
@pytest.mark.parametrize("pieces", [[], ["<", "call>"], ["a<", "é<ca", "é", "<call>x"]])
def test_what_is_cut_begins_at_the_last_call_however_tokens_stand_to_it(piece_tokenizer, written, pieces):
    """Without pieces é is two tokens, which are a letter only together."""
    tokenizer, called = piece_tokenizer(pieces), "é<call>"
    context = tokenizer.encode(f"Q {written}")
    keep, before = cut_last(called, context, tokenizer)
    before_call, found, _ = f"Q {written}".rpartition(called)
    assert tokenizer.decode([*context[:keep], *before]) == (before_call if found else f"Q {written}")
    assert not found or called in tokenizer.decode(context[keep:])
    assert called not in tokenizer.decode(context[keep + 1 :])


def test_a_long_call_is_decoded_few_times(piece_tokenizer):
    """Each time takes as long as the call is, and the engine's steps wait meanwhile."""
    tokenizer, lengths = piece_tokenizer([]), []
    context = tokenizer.encode("Q" * 1000 + "<call>" + "x" * 7000)

    def decode(ids):
        lengths.append(len(ids))
        return piece_tokenizer([]).decode(ids)

    tokenizer.decode = decode
    assert cut_last("<call>", context, tokenizer) == (1000, [])
    assert len(lengths) <= 2 + len(context).bit_length()
