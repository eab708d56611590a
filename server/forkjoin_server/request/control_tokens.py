"""Control tokens that a client's text spells are text: no token that forks or joins comes of them.

A chat template writes control tokens of its own beside what the client wrote, and the tokenizer makes tokens
of both. So each one that the client wrote is *marked* before the template is filled in: a marked tag is two
rare characters. When the template's text becomes tokens, marks are tags again, and their tokens
are replaced by those that the same characters have as ordinary text. Decoded, the prompt is what the client
wrote, to the letter.

A template may also put a tag together, of two parts of a message. So the end of a text that begins a tag is
marked, too: a *seam*, which is nothing when the template's text becomes tokens. A tag with a seam in it is
the client's.

    content  "a List<Thread> of"          marked "a ListM0 of"
    template "<|user|>a ListM0 of<|assistant|>"
    tokens   … "List" "<" "Thread" ">" " of" …       instead of "List" <Thread> " of"
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.excerpt import cut

#: A sign of the Phaistos disc. A hieroglyph after it says which tag is meant, that the client wrote it
#: itself, or that it is a seam. Templates that write lists as Python or JSON does leave both as they are,
#: for they are printable.
_MARK = "\U000101d0"
_FIRST = 0x13000
#: The same where a template writes JSON in ASCII.
_ESCAPED = re.compile(r"\\ud800\\uddd0\\ud80c\\ud[c-f][0-9a-f]{2}")
#: Cohere's renderer calls it by the second name.
_ASSISTANTS = ("assistant", "chatbot")
#: Lists and objects in each other: no schema of a tool has so many.
_MAX_DEPTH = 100


class Marked(str):
    """The text of a prompt with marks in it, which stays one where vLLM cuts it to the context's length."""

    def __getitem__(self, key: Any) -> Marked:
        return Marked(super().__getitem__(key))

    def lower(self) -> Marked:
        return Marked(super().lower())


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens that are tokens of the vocabulary: each with its id, and the ids of its text."""

    ids: Mapping[str, int]
    text_ids: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, tags: Iterable[str], added: Mapping[str, int], tokenizer: Tokenizer) -> ControlTokens:
        """Those of ``tags`` that ``tokenizer`` finds in any text: ``added`` to its vocabulary."""
        ids = {tag: added[tag] for tag in tags if tag in added}
        return cls(ids, {tag: _as_text(tag, set(added.values()), tokenizer) for tag in ids})

    @cached_property
    def _tags(self) -> list[str]:
        return sorted(self.ids, key=len, reverse=True)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, [*self._tags, _MARK])))

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        """What a tag begins with, for a text to end with."""
        return tuple({tag[:n] for tag in self._tags for n in range(1, len(tag))})

    @cached_property
    def _by_id(self) -> dict[int, str]:
        return {token_id: tag for tag, token_id in self.ids.items()}

    def first_in(self, value: Any, kept: str | None = None) -> str | None:
        """The first tag that a text in ``value`` spells, None if none; ``kept``: an end of texts that may."""
        texts = (text.removesuffix(kept or "") for text in _texts(value))
        return next((tag for text in texts for tag in self._tags if tag in text), None)

    def may_be_spelled(self, value: Any) -> bool:
        """Whether a text in ``value`` spells a tag, or ends with the beginning of one."""
        return self.first_in(value) is not None or any(t.endswith(self._beginnings) for t in _texts(value))

    def spelled_by(self, token_ids: Iterable[int]) -> list[int]:
        """Those of ``token_ids`` that are control tokens."""
        return [i for i in token_ids if i in self._by_id]

    def as_text(self, token_ids: Iterable[int]) -> list[int]:
        """``token_ids`` with its text in the place of each control token."""
        pieces = (self.text_ids[self._by_id[i]] if i in self._by_id else (i,) for i in token_ids)
        return [i for piece in pieces for i in piece]

    def marked(self, value: Any, kept: str | None = None) -> Any:
        """``value``, of lists and dicts, with tags and seams in its texts marked.

        ``kept``: an end that is not.
        """

        def mark(text: str) -> str:
            end = kept if kept and text.endswith(kept) else ""
            seam = self._seam if not end and text.endswith(self._beginnings) else ""
            # Looking for each takes a hundredth of what looking for any does, and most texts have none.
            if not seam and not any(tag in text for tag in (*self._tags, _MARK)):
                return text
            return self._pattern.sub(self._mark, text[: len(text) - len(end)]) + end + seam

        return _mapped(value, mark)

    def _mark(self, found: re.Match[str]) -> str:
        number = len(self._tags) if found[0] == _MARK else self._tags.index(found[0])
        return _MARK + chr(_FIRST + number)

    @property
    def _seam(self) -> str:
        return _MARK + chr(_FIRST + len(self._tags) + 1)

    def plain(self, marked: str) -> tuple[str, set[int]]:
        """``marked`` with tags in the place of marks, and where in it those begin that the client wrote."""
        marked = _ESCAPED.sub(lambda found: str(json.loads(f'"{found[0]}"')), marked)
        parts, starts, length = [], set(), 0
        seams: list[int] = []
        for number, part in enumerate(marked.split(_MARK)):
            which = ord(part[0]) - _FIRST if number and part else -1
            text = part
            if 0 <= which < len(self._tags):
                starts.add(length)
                text = self._tags[which] + part[1:]
            elif which == len(self._tags) + 1:
                seams.append(length)
                text = part[1:]
            elif number:  # the client's own, or one that a length cut in two
                text = _MARK + part[1:]
            parts.append(text)
            length += len(text)
        text = "".join(parts)
        for found in self._pattern.finditer(text) if seams else ():
            at = bisect_right(seams, found.start())
            if at < len(seams) and seams[at] < found.end():
                starts.add(found.start())
        return text, starts

    def neutralised(self, token_ids: Sequence[int], text: str, starts: set[int]) -> list[list[int]]:
        """What stands in the place of each of ``token_ids``, those of ``text``: itself, or a tag's text.

        Tags are told apart by their order in the text, of which the tokens may be cut at either end. If the
        tokens are not the text's, all are text.
        """
        spelled = [(m[0], m.start() in starts) for m in self._pattern.finditer(text) if m[0] != _MARK]
        seen = [self._by_id[i] for i in token_ids if i in self._by_id]
        first, last = spelled[: len(seen)], spelled[len(spelled) - len(seen) :]
        if [tag for tag, _ in first] == seen:
            is_text = iter([by_client for _, by_client in first])
        elif [tag for tag, _ in last] == seen:
            is_text = iter([by_client for _, by_client in last])
        else:
            is_text = iter([True] * len(seen))
        return [
            list(self.text_ids[self._by_id[i]]) if i in self._by_id and next(is_text) else [i]
            for i in token_ids
        ]


def check_has_none(
    tokens: ControlTokens, conversation: Sequence[Mapping[str, Any]], tools: Any, kept: str | None = None
) -> None:
    """Raise BadRequestOptions naming the message that spells a control token, or that a tool does.

    An assistant's may: they are what the server answered before. ``kept``: an end of messages that may, too.
    """
    for number, message in enumerate(conversation):
        if message.get("role") not in _ASSISTANTS and (tag := tokens.first_in(message, kept)):
            raise refusal(f"messages[{number}]", tag)
    if tag := tokens.first_in(tools):
        raise refusal("tools", tag)


def refusal(where: str, tag: str) -> BadRequestOptions:
    """The error for a client that spells ``tag`` in its text ``where``, and may not."""
    return BadRequestOptions(
        f"{where}: expected no control token of the model's dialect in it, got {cut(tag)}: leave it out"
    )


def _as_text(tag: str, added: set[int], tokenizer: Tokenizer) -> list[int]:
    """The tokens of ``tag`` as ordinary text: in two parts, or else each character by itself."""
    ways = [[tag[:n], tag[n:]] for n in range(1, len(tag))] + [list(tag)]
    made = [[i for part in parts for i in tokenizer.encode(part)] for parts in ways]
    ordinary = [ids for ids in made if added.isdisjoint(ids)]
    exact = [ids for ids in ordinary if tokenizer.decode(ids) == tag]
    return [*exact, *ordinary, []][0]


def _texts(value: Any) -> Iterable[str]:
    found: list[str] = []
    _mapped(value, lambda text: found.append(text) or text)  # type: ignore[func-returns-value]
    return found


def _mapped(value: Any, change: Callable[[str], str], depth: int = 0) -> Any:
    """``value`` with its texts changed. Raises BadRequestOptions if it nests too deeply."""
    if depth > _MAX_DEPTH:
        raise BadRequestOptions(
            f"messages and tools: expected at most {_MAX_DEPTH} lists and objects in each other"
        )
    if isinstance(value, str):
        return change(value)
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change, depth + 1) for item in value]
    if isinstance(value, Mapping):
        items = value.items()
        return {change(k) if isinstance(k, str) else k: _mapped(v, change, depth + 1) for k, v in items}
    return value
