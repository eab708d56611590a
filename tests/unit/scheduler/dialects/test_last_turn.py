"""Another text in the place of the last user's, in prompts as chat templates write them."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.last_turn import LastTurn
from tests.unit.conftest import ByteTokenizer

TAGS = ["<s>", "</s>"]
BEGIN, USER, ASSISTANT = "<s>user\n", "</s>\n<s>user\n", "</s>\n<s>assistant\n"


class Merging(ByteTokenizer):
    """One id for two newlines, as many tokenizers have it."""

    def __init__(self, turns=(BEGIN, USER, ASSISTANT)):
        super().__init__([*TAGS, "\n\n"], turns)


def _with(prompt: str | list[int], tokenizer=None) -> str:
    tokenizer = tokenizer or Merging()
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    turn = LastTurn.of(ids, tokenizer)
    return tokenizer.decode([*ids[: turn.keep], *turn.with_text("Asked: ", "!", tokenizer)])


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (BEGIN, ASSISTANT),
        (f"<s>system\nBe brief.{USER}", ASSISTANT),
        (f"{BEGIN}one{ASSISTANT}two{USER}", ASSISTANT),
        (BEGIN, f"{ASSISTANT}<think>\n"),
        (BEGIN, ""),
        ("", ASSISTANT),
        ("", ""),
    ],
    ids=["alone", "system", "history", "thinking", "open", "no_turn", "raw"],
)
@pytest.mark.parametrize("text", ["Why?", "", "a\n\nb", "assistant\n", "user\nagain"])
def test_what_the_chat_template_wrote_around_the_text_stays(before, behind, text):
    assert _with(f"{before}{text}{behind}") == f"{before}Asked: {text}!{behind}"


def test_a_text_that_begins_with_the_templates_own_newline_is_found():
    tokenizer = Merging()
    prompt = tokenizer.encode(f"{BEGIN}\nWhy?{ASSISTANT}")
    assert tokenizer.token_id("\n\n") in prompt
    assert _with(prompt) == f"{BEGIN}Asked: \nWhy?!{ASSISTANT}"


def test_the_whole_is_encoded_as_the_template_would_have_it():
    tokenizer = Merging()
    prompt = tokenizer.encode(f"{BEGIN}Why?\n{ASSISTANT}")
    turn = LastTurn.of(prompt, tokenizer)
    ids = [*prompt[: turn.keep], *turn.with_text("", "\nso", tokenizer)]
    assert ids == tokenizer.encode(f"{BEGIN}Why?\n\nso{ASSISTANT}")


def test_a_control_token_that_the_user_spells_stays_text():
    tokenizer = Merging()
    spelled = list(map(ord, f"{USER}{ASSISTANT}"))
    prompt = [*tokenizer.encode(BEGIN), *spelled, *tokenizer.encode(ASSISTANT)]
    turn = LastTurn.of(prompt, tokenizer)
    ids = turn.with_text("Asked: ", "!", tokenizer)
    assert ids[: -len(turn.tail)] == (*map(ord, "\nAsked: "), *spelled, ord("!"))
    assert tokenizer.decode(list(turn.tail)) == ASSISTANT


def test_without_a_chat_template_the_prompt_is_the_text():
    assert _with("Why?", Merging(None)) == "Asked: Why?!"
