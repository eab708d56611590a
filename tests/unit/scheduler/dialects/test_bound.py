from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.dialects.bound import WINDOW_TOKENS, BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import DialectError
from forkjoin_scheduler.families.fork import ThreadPlan
from tests.unit.conftest import PieceTokenizer

#: Pieces that cut tags anywhere, and characters of several bytes into bytes.
PIECES = ["<fo", "rk>", "<fork", "> b", "</t", "end>", "e</te", "ü", "n", "d><"]


def _in_text(**fields) -> Dialect:
    return Dialect.model_validate(
        {
            "name": "mine",
            "source": "a test",
            "tags_are": "text",
            "trigger": "<fork>",
            "width": 2,
            "thread": {"header": "{n}"},
        }
        | fields
    )


def _heard(hears, ids: list[int]) -> list[int]:
    """After how many tokens ``hears`` said so."""
    return [n for n in range(1, len(ids) + 1) if hears(ids[:n])]


def test_a_trigger_token_forks_when_it_is_the_last(dialect, tokenizer):
    bound = BoundDialect.bind(dialect, tokenizer)
    ids = tokenizer.encode("a</Outlines>b</Outlines>")
    assert bound.trigger_id == tokenizer.token_id("</Outlines>")
    assert _heard(bound.triggers, ids) == [2, 4]


def test_a_tokenizer_that_lacks_a_tag_is_not_bound(dialect, byte_tokenizer):
    with pytest.raises(DialectError, match="</Outlines>"):
        BoundDialect.bind(dialect, byte_tokenizer([]))


def test_binding_puts_the_turns_of_the_chat_template_in(make_dialect, byte_tokenizer):
    mine = make_dialect(thread={"header": "{user}{n}"})
    bound = BoundDialect.bind(mine, byte_tokenizer(["<F>"], ("<B>", "<U>", "<A>")))
    assert bound.dialect.thread.header == "<U>{n}"


@pytest.mark.parametrize("fork_at", ["end", "prompt"])
def test_a_dialect_that_forks_elsewhere_hears_no_trigger(fork_at, piece_tokenizer):
    bound = BoundDialect.bind(_in_text(fork_at=fork_at), piece_tokenizer(PIECES))
    assert _heard(bound.triggers, bound.tokenizer.encode("<fork>")) == []


@pytest.mark.parametrize(
    ("text", "forks_behind"),
    [
        ("<fork>", ["<fork>"]),
        ("<fork> b<fork>c", ["<fork> b", "<fork> b<fork>"]),
        ("<for", []),
        ("ä<fork>é", ["ä<fork>"]),
    ],
    ids=["alone", "inside_a_token", "cut_off", "between_bytes"],
)
def test_a_text_trigger_forks_behind_the_token_that_completes_it(piece_tokenizer, text, forks_behind):
    bound = BoundDialect.bind(_in_text(), piece_tokenizer(PIECES))
    ids = bound.tokenizer.encode(text)
    assert [bound.tokenizer.decode(ids[:n]) for n in _heard(bound.triggers, ids)] == forks_behind


@given(st.lists(st.sampled_from([*PIECES, "<", "f", "ork>", "€", "😀", "\n"]), max_size=30))
def test_each_text_trigger_is_heard_once_and_exactly_in_its_last_token(parts):
    """The oracle counts triggers in the text of each prefix; bytes of a character may be apart."""
    tokenizer = PieceTokenizer(PIECES)
    bound = BoundDialect.bind(_in_text(), tokenizer)
    ids = [i for part in parts for i in tokenizer.encode(part)]
    counts = [tokenizer.decode(ids[:n]).count("<fork>") for n in range(len(ids) + 1)]
    expected = [n for n in range(1, len(ids) + 1) if counts[n] > counts[n - 1]]
    assert _heard(bound.triggers, ids) == expected


def test_a_trigger_is_looked_for_in_the_last_tokens_only(byte_tokenizer):
    bound = BoundDialect.bind(_in_text(trigger=r"<x*>"), byte_tokenizer([]))
    fits = "<" + "x" * (WINDOW_TOKENS - 2) + ">"
    assert bound.triggers(bound.tokenizer.encode(f"ab{fits}"))
    assert not bound.triggers(bound.tokenizer.encode(fits.replace("x", "xx", 1)))


def test_a_text_trigger_is_a_regex(byte_tokenizer):
    bound = BoundDialect.bind(_in_text(trigger=r"<fork (?:\d+)>"), byte_tokenizer([]))
    assert _heard(bound.triggers, bound.tokenizer.encode("<fork x><fork 12>.")) == [17]


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ({}, {"<F>"}),
        ({"fork_at": "prompt"}, set()),
        ({"fork_at": "end"}, None),
        ({"tags_are": "text"}, None),
        ({"swaps": {"<X>": "x"}}, None),
        ({"join": {"kind": "on_demand", "ask": r"<G (?P<number>\d)>"}}, None),
    ],
    ids=["trigger", "prompt", "end", "text", "swaps", "ask"],
)
def test_which_tokens_call_for_anything(make_dialect, byte_tokenizer, fields, calls):
    bound = BoundDialect.bind(make_dialect(**fields), byte_tokenizer(["<F>"]))
    assert bound.calls == (None if calls is None else {bound.tokenizer.token_id(t) for t in calls})


def test_a_text_that_the_model_should_not_write_is_looked_for_by_its_token(make_dialect, byte_tokenizer):
    bound = BoundDialect.bind(make_dialect(swaps={"<X>": "x"}), byte_tokenizer(["<F>", "<X>"]))
    assert bound.calls == {bound.tokenizer.token_id(t) for t in ("<F>", "<X>")}
    assert [bound.written_itself(bound.tokenizer.encode(t)) for t in ("a<X>", "<X>a")] == ["<X>", None]


# ---- turns that end with a fork ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "forks"),
    [("a<fork>", True), ("a<fork> \n", True), ("<fork>a", False), ("a", False), ("", False)],
    ids=["trigger", "space_behind", "text_behind", "none", "empty"],
)
def test_a_turn_that_ends_with_the_trigger_forks(byte_tokenizer, text, forks):
    bound = BoundDialect.bind(_in_text(fork_at="end"), byte_tokenizer([]))
    assert bound.ends_turn_with_fork(bound.tokenizer.encode(text)) is forks


def test_an_alternative_of_the_trigger_must_end_the_turn_too(byte_tokenizer):
    bound = BoundDialect.bind(_in_text(fork_at="end", trigger="<go>|<fork>"), byte_tokenizer([]))
    assert bound.ends_turn_with_fork(bound.tokenizer.encode("<go>"))
    assert not bound.ends_turn_with_fork(bound.tokenizer.encode("<go> on"))


def test_a_trigger_token_with_brackets_ends_a_turn_as_it_is_written(byte_tokenizer):
    brackets = _in_text(fork_at="end", tags_are="tokens", trigger="[Fork]")
    bound = BoundDialect.bind(brackets, byte_tokenizer(["[Fork]"]))
    assert bound.ends_turn_with_fork(bound.tokenizer.encode("a[Fork]"))
    assert not bound.ends_turn_with_fork(bound.tokenizer.encode("work"))


@pytest.mark.parametrize(
    ("text", "forks"),
    [("Plan:\n1. a\n2. b", True), ("1. a\nPlan:", False), ("1. a", False), ("Plan: none", False)],
    ids=["listed", "before_the_opening", "never_opened", "no_list"],
)
def test_without_a_trigger_a_turn_that_announces_threads_forks(byte_tokenizer, text, forks):
    listing = _in_text(
        fork_at="end",
        trigger=None,
        width=None,
        outline={"opens": "Plan:", "pattern": r"(?P<number>\d+)\. (?P<title>.*)"},
    )
    bound = BoundDialect.bind(listing, byte_tokenizer([]))
    assert bound.ends_turn_with_fork(bound.tokenizer.encode(text)) is forks


def test_a_turn_ends_with_a_fork_only_where_the_dialect_forks_there(dialect, tokenizer, byte_tokenizer):
    bound = BoundDialect.bind(dialect, tokenizer)
    assert not bound.ends_turn_with_fork(tokenizer.encode("<Outlines><Outline>1: a</Outline></Outlines>"))
    assert not BoundDialect.bind(_in_text(), byte_tokenizer([])).ends_turn_with_fork(list(b"<fork>"))


# ---- results on demand ---------------------------------------------------------------------


def test_a_branch_asks_for_the_thread_whose_number_it_completes(piece_tokenizer):
    asking = _in_text(join={"kind": "on_demand", "ask": r"<join (?P<number>\d+)>"})
    bound = BoundDialect.bind(asking, piece_tokenizer(["<join", "12", "> b", ">"]))
    ids = bound.tokenizer.encode("<join 12> b<join 3>")
    asked = {bound.tokenizer.decode(ids[:n]): bound.asked_for(ids[:n]) for n in range(1, len(ids) + 1)}
    assert {text: number for text, number in asked.items() if number is not None} == {
        "<join 12> b": "12",
        "<join 12> b<join 3>": "3",
    }


def test_nobody_asks_where_results_are_not_on_demand(byte_tokenizer):
    assert BoundDialect.bind(_in_text(), byte_tokenizer([])).asked_for(list(b"<join 1>")) is None


def test_a_question_without_a_number_asks_for_none(byte_tokenizer, make_dialect):
    join = {"kind": "on_demand", "ask": "<J(?P<number>[0-9]*)>"}
    bound = BoundDialect.bind(make_dialect(join=join, trigger="<F>", tags_are="text"), byte_tokenizer([]))
    assert (bound.asked_for(list(b"<J>")), bound.asked_for(list(b"<J2>"))) == (None, "2")


# ---- ends of threads -----------------------------------------------------------------------


def _plan(end: str | None) -> ThreadPlan:
    return ThreadPlan("1", "", (), (), end)


def test_a_thread_ends_on_a_token_where_tags_are_tokens(dialect, tokenizer):
    bound = BoundDialect.bind(dialect, tokenizer)
    assert bound.end_id(_plan("</Thread>")) == tokenizer.token_id("</Thread>")
    assert not bound.ends(_plan("</Thread>"), tokenizer.encode("a</Thread>"))


def test_a_thread_ends_with_a_text_where_tags_are_text(piece_tokenizer):
    bound = BoundDialect.bind(_in_text(), piece_tokenizer(PIECES))
    ids = bound.tokenizer.encode("üe</tend><")
    assert bound.end_id(_plan("</tend>")) is None
    assert [
        bound.tokenizer.decode(ids[:n]) for n in _heard(lambda i: bound.ends(_plan("</tend>"), i), ids)
    ] == ["üe</tend><"]


def test_the_end_of_a_thread_is_no_regex(byte_tokenizer):
    bound = BoundDialect.bind(_in_text(), byte_tokenizer([]))
    assert bound.ends(_plan("[x]."), list(b"a[x]."))
    assert not bound.ends(_plan("[x]."), list(b"ax."))


@pytest.mark.parametrize("tags_are", ["tokens", "text"])
def test_without_an_end_tag_only_the_end_of_sequence_ends_a_thread(byte_tokenizer, tags_are):
    bound = BoundDialect.bind(_in_text(tags_are=tags_are), byte_tokenizer(["<fork>"]))
    assert bound.end_id(_plan(None)) is None
    assert not bound.ends(_plan(None), list(b"anything"))


@pytest.mark.parametrize("name", ["multiverse", "npr", "parallel-r1", "threadweaver"])
def test_each_thread_of_a_published_dialect_ends_on_a_token(byte_tokenizer, name):
    published = load(name)
    bound = BoundDialect.bind(published, byte_tokenizer(list(published.control_tokens)))
    end = published.thread.end
    assert end is not None
    assert re.fullmatch(r"</\w+>", end)
    assert bound.end_id(_plan(end)) == bound.tokenizer.token_id(end)


def test_what_else_ends_a_thread_ends_each(make_dialect, byte_tokenizer):
    thread = {"header": "<T{n}>", "end": "</T{n}>", "also_ends": ["</T{n}>", "</X>"]}
    dialect = make_dialect(width=3, thread=thread)
    bound = BoundDialect.bind(dialect, byte_tokenizer(list(dialect.control_tokens)))
    texts = ["</T2>", "</T1>", "</T3>", "</X>"]
    assert bound.end_ids(_plan("</T2>")) == [bound.tokenizer.token_id(t) for t in texts]
    assert bound.end_ids(_plan(None)) == []
    in_text = BoundDialect.bind(make_dialect(tags_are="text", width=3, thread=thread), byte_tokenizer([]))
    assert all(in_text.ends(_plan("</T2>"), list(f"a{t}".encode())) for t in texts)
    assert not in_text.ends(_plan("</T2>"), list(b"a</T4>"))


def test_a_token_or_a_text_stops_the_answer(make_dialect, byte_tokenizer):
    bound = BoundDialect.bind(make_dialect(stops=["<S>"]), byte_tokenizer(["<F>", "<S>"]))
    assert bound.stop_ids == [bound.tokenizer.token_id("<S>")]
    assert bound.stopped_by(bound.tokenizer.encode("a<S>")) is None
    bound = BoundDialect.bind(make_dialect(stops=["<S>"], tags_are="text"), byte_tokenizer([]))
    assert bound.stop_ids == []
    assert _heard(lambda ids: bound.stopped_by(ids) is not None, bound.tokenizer.encode("a<S>b")) == [4]


def test_a_text_that_the_model_should_not_write_is_heard_however_it_is_cut_into_tokens(piece_tokenizer):
    bound = BoundDialect.bind(_in_text(swaps={"</tend>": "x", "nn": "y"}), piece_tokenizer(PIECES))
    ids = bound.tokenizer.encode("</tend></t</tend>a")
    assert _heard(bound.written_itself, ids) == [2, 5]
    assert [bound.written_itself(bound.tokenizer.encode(t)) for t in ("</tend>", "ann", "anna")] == [
        "</tend>",
        "nn",
        None,
    ]


def test_banned_rows_are_tokens(make_dialect, byte_tokenizer):
    mine = make_dialect(sampling={"banned": [["<C>"], ["<F>", "<F>"]]})
    bound = BoundDialect.bind(mine, byte_tokenizer(["<F>", "<C>"]))
    assert bound.banned_ids() == [[257], [256, 256]]
    with pytest.raises(DialectError, match="<C>"):
        BoundDialect.bind(mine, byte_tokenizer(["<F>"]))
