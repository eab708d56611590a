from __future__ import annotations

import pytest
from msgspec import convert, msgpack, to_builtins

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.compiled import Room, check_chars, check_room, compile_options
from forkjoin_scheduler.request.options import CompiledOptions, parse_options


def _encode(text: str) -> list[int]:
    return list(text.encode())


def _compiled(value: dict) -> CompiledOptions:
    return compile_options(parse_options(value), _encode)


def test_texts_become_tokens_and_all_else_stays():
    asked = {"branches": [{"title": "a"}, {"title": "b", "text": "c:"}], "closing": "so", "max_forks": 3}
    assert to_builtins(_compiled(asked)) == {
        "branches": [{"title": "a", "token_ids": [97, 10]}, {"title": "b", "token_ids": [99, 58]}],
        "closing": [115, 111],
        "max_forks": 3,
    }


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"enabled": False},
        {"best_of": 2, "vote": "a", "confidence": 1},
        {"branches": [{"text": "a"}]},
        {"max_forks": None, "max_total_tokens": 7},
    ],
)
def test_the_engine_reads_back_what_it_is_sent(value):
    compiled = _compiled(value)
    sent = msgpack.encode({"forkjoin_compiled": to_builtins(compiled)})
    assert convert(msgpack.decode(sent)["forkjoin_compiled"], CompiledOptions) == compiled
    assert compiled.width == parse_options(value).width


def test_a_text_without_tokens_is_refused():
    with pytest.raises(
        BadRequestOptions, match=r"forkjoin\.branches\[0\]\.text: expected a text with tokens"
    ):
        compile_options(parse_options({"branches": [{"text": "\u200b"}]}), lambda text: [])


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"branches": [{"text": "a"}, {"text": "a" * 41}]}, r"forkjoin\.branches\[1\]\.text: .*40.*got 41"),
        ({"branches": [{"title": "a" * 40}]}, r"forkjoin\.branches\[0\]\.text"),
        ({"branches": [{"text": "a"}], "closing": "a" * 41}, r"forkjoin\.closing: expected at most 40 char"),
    ],
)
def test_a_text_longer_than_any_context_is_named_by_its_characters(value, named):
    with pytest.raises(BadRequestOptions, match=named):
        check_chars(parse_options(value), Room(10, max_chars_per_token=4))


@pytest.mark.parametrize("value", [{}, {"branches": [{"text": "a" * 40}], "closing": "a" * 40}])
def test_a_text_that_may_fit_is_left_to_be_tokenised(value):
    check_chars(parse_options(value), Room(10, max_chars_per_token=4))


TWO = {"branches": [{"text": "aaa"}, {"text": "aaaaa"}]}


@pytest.mark.parametrize(
    ("value", "max_model_len", "named"),
    [
        (TWO, 25, r"branches\[1\]\.text: expected at most 4 tokens after a prompt of 20 .* of 25, got 5"),
        (TWO, 21, r"branches\[0\]\.text: expected at most 0 tokens"),
        (TWO, 20, r"branches\[0\]\.text: expected at most 0 tokens"),
        (TWO | {"closing": "so"}, 30, r"closing: expected at most 1 tokens .* of 30, with branches of 8"),
        (TWO | {"closing": "so"}, 26, r"closing: expected at most 0 tokens"),
    ],
    ids=["branch", "no_room", "less_than_none", "closing", "no_room_for_a_closing"],
)
def test_what_does_not_fit_beside_the_prompt_is_named_with_the_room_that_there_is(
    value, max_model_len, named
):
    with pytest.raises(BadRequestOptions, match=named):
        check_room(_compiled(value), 20, max_model_len)


@pytest.mark.parametrize(
    ("value", "max_model_len"), [(TWO, 26), (TWO | {"closing": "so"}, 31), ({}, 1), ({"max_forks": 1}, 1)]
)
def test_what_fits_to_the_token_passes(value, max_model_len):
    check_room(_compiled(value), 20, max_model_len)
