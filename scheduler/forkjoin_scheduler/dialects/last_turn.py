"""Where the last user's text stands in a prompt, so that another can take its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forkjoin_scheduler.dialects.tokenizer import Tokenizer


@dataclass(frozen=True)
class LastTurn:
    """A prompt in parts: ``keep`` tokens, the last user's text, and what the chat template writes after it.

    ``gap``: the whitespace that the template writes right before the text, in one token with it perhaps.
    """

    keep: int
    gap: str
    text_ids: tuple[int, ...]
    tail: tuple[int, ...]

    @classmethod
    def of(cls, prompt: Sequence[int], tokenizer: Tokenizer) -> LastTurn:
        """That of ``prompt``. One without a user's turn is that text from its first token on."""
        begin, user, assistant = tokenizer.turns() or ("", "", "")
        keep, gap = max(_behind(turn, prompt, tokenizer) for turn in (begin, user))
        core = tokenizer.encode(assistant.rstrip())
        end = _last(core, prompt, keep)
        end = len(prompt) if end is None else end
        return cls(keep, gap, tuple(prompt[keep:end]), tuple(prompt[end:]))

    def with_text(self, before: str, behind: str, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The prompt behind its first ``keep`` tokens, with ``before`` and ``behind`` around the user's text.

        As the chat template's text would be encoded; but a text that spells control tokens stays as it is.
        """
        text = tokenizer.decode(list(self.text_ids)).removeprefix(self.gap)
        if tuple(tokenizer.encode(self.gap + text)) == self.text_ids:
            ids = tokenizer.encode(self.gap + before + text + behind)
        else:
            num_gap = len(tokenizer.encode(self.gap))
            ids = [*tokenizer.encode(self.gap + before), *self.text_ids[num_gap:], *tokenizer.encode(behind)]
        return (*ids, *self.tail)


def _behind(turn: str, prompt: Sequence[int], tokenizer: Tokenizer) -> tuple[int, str]:
    """After how many tokens of ``prompt`` ``turn`` has ended, but for the whitespace at its end."""
    core = tokenizer.encode(turn.rstrip())
    at = _last(core, prompt, 0)
    return (0, "") if at is None else (at + len(core), turn[len(turn.rstrip()) :])


def _last(wanted: Sequence[int], prompt: Sequence[int], start: int) -> int | None:
    """Where ``wanted`` stands last in ``prompt``, from ``start`` on."""
    if not wanted:
        return None
    places = range(len(prompt) - len(wanted), start - 1, -1)
    found = (at for at in places if prompt[at] == wanted[0])
    return next((at for at in found if list(prompt[at : at + len(wanted)]) == list(wanted)), None)
