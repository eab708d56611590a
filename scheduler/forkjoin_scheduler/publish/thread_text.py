"""The text of threads, from their tokens as these come.

A token may end in the middle of a character. Its text is held back until the character is whole, or the
thread ends: then what there is of it leaves, as it would at the end of a text that is decoded at once.
"""

from __future__ import annotations

from typing import Protocol

from msgspec.structs import replace

from forkjoin_scheduler.publish.events import Event, FamilyEnded, ThreadEnded, Tokens

#: What a decoder writes for an incomplete character.
INCOMPLETE = "\ufffd"


class Decoder(Protocol):
    """What is needed of the front end's tokenizer."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str: ...


class ThreadText:
    """Incremental text of one thread."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        #: Tokens whose text has left, and those of them that are decoded once more, for the text of a
        #: token may depend on the one before.
        self._num_shown = self._first = 0

    def push(self, decoder: Decoder, token_ids: list[int]) -> str:
        """The text that ``token_ids`` complete."""
        self._ids += token_ids
        text = self.rest(decoder)
        if text.endswith(INCOMPLETE):
            return ""
        self._first, self._num_shown = self._num_shown, len(self._ids)
        return text

    def rest(self, decoder: Decoder) -> str:
        """The text that has not left, whole or not."""
        before = decoder.decode(self._ids[self._first : self._num_shown], skip_special_tokens=False)
        text = decoder.decode(self._ids[self._first :], skip_special_tokens=False)
        return text[len(before) :]


class FamilyTexts:
    """The texts of a family's threads, by index, until they end."""

    def __init__(self) -> None:
        self._texts: dict[int, ThreadText] = {}

    @property
    def has_any(self) -> bool:
        """Whether a thread has written and not ended."""
        return bool(self._texts)

    def read(self, decoder: Decoder, events: list[Event]) -> list[Event]:
        """``events``, with the text of tokens, and before each end what was held back for want of it."""
        read: list[Event] = []
        for event in events:
            match event:
                case Tokens():
                    text = self._texts.setdefault(event.index, ThreadText())
                    event = replace(event, text=text.push(decoder, event.token_ids))
                case ThreadEnded():
                    read += self._last(decoder, [event.index])
                case FamilyEnded():
                    read += self._last(decoder, list(self._texts))
            read.append(event)
        return read

    def _last(self, decoder: Decoder, ended: list[int]) -> list[Event]:
        """What the threads that ended have still to say."""
        rests = {i: self._texts.pop(i).rest(decoder) for i in ended if i in self._texts}
        return [Tokens(index=i, token_ids=[], text=rest) for i, rest in rests.items() if rest]
