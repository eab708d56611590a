"""vLLM's tokenizer as the decisions see it."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer


class _Templated:
    """A tokenizer whose chat template writes roles in brackets, and drops space round a text."""

    chat_template = "of no matter"

    def __init__(self, begin: str = "<s>[system]Be kind.[end]\n", *, end: str = "[end]\n") -> None:
        self._begin, self._end = begin, end

    def get_vocab(self) -> dict[str, int]:
        return {}

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert not tokenize
        turns = "".join(f"[{m['role']}]{m['content'].strip()}{self._end}" for m in messages)
        return self._begin + turns + ("[assistant]" if add_generation_prompt else "")


class _Plain(_Templated):
    chat_template = None


def test_the_turns_are_what_the_chat_template_writes_round_a_users_text():
    begin, user, assistant = EngineTokenizer(_Templated()).turns()
    assert begin == "<s>[system]Be kind.[end]\n[user]"
    assert user == "[end]\n[user]"
    assert assistant == "[end]\n[assistant]"


@pytest.mark.parametrize("begin", ["", "<s>"])
def test_a_chat_that_begins_with_the_users_turn(begin):
    assert EngineTokenizer(_Templated(begin)).turns()[0] == f"{begin}[user]"


def test_put_together_they_are_the_chat_itself():
    tokenizer = _Templated()
    begin, user, assistant = EngineTokenizer(tokenizer).turns()
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert f"{begin}a{assistant}b{user}c{assistant}" == chat


def test_without_a_chat_template_there_are_no_turns():
    assert EngineTokenizer(_Plain()).turns() is None
