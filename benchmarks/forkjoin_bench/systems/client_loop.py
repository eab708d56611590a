"""A client that forks and joins, as ThreadWeaver publishes it, against an engine that does not.

Ask until the trigger; ask for all threads at once, each from the whole context and its header, until
their end tag; put them one after the other; ask again. On text over HTTP, or on token ids in
process: ``Completer`` is either.

This is the client at its best: it streams only what its own client is to see (its first request and
those after a join), and threads that fork themselves are clients in turn.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from forkjoin_bench.inputs.script import JOIN_TEXT, THREAD_END, TRIGGER, Compiled, header, joined_header
from forkjoin_bench.systems.base import Answer, Engine
from forkjoin_scheduler.dialects.files import load

_OUTLINE = load("threadweaver").outline
assert _OUTLINE is not None
_NUMBER = re.compile(_OUTLINE.pattern)


Text = TypeVar("Text", str, list[int])


class Completer(Protocol[Text]):
    """An engine that continues a context, text or ids."""

    @property
    def engine(self) -> Engine:
        """What it asks."""

    def encode(self, text: str) -> Text:
        """``text`` as the engine is asked with it."""

    def decode(self, text: Text) -> str: ...

    async def complete(
        self, context: Text, max_tokens: int, stops: Sequence[str], seed: int | None, answer: Answer | None
    ) -> Text:
        """What follows ``context``, up to one of ``stops`` (it too) or the end of sequence (not it).

        ``seed``: the number of the sample, if ``context`` is of one of several.
        Notes in ``answer``, if one is given, when text came in.
        """


class ClientLoop(Generic[Text]):
    """The loop. ``max_families``: a gate, for at most so many families at a time."""

    def __init__(self, name: str, completer: Completer[Text], max_families: int | None = None) -> None:
        self.name = name
        self.engine = completer.engine
        self._completer: Completer[Text] = completer
        self._gate = asyncio.Semaphore(max_families or 1_000_000)

    async def text_of(self, family: Compiled, answer: Answer) -> str:
        prompt = self._completer.encode(family.family.prompt)
        async with self._gate:
            sample, max_tokens = family.family.sample, len(family.token_ids) + 1
            written = await self._branch(prompt, max_tokens, (TRIGGER,), sample, answer)
        return self._completer.decode(written)

    async def _branch(
        self, start: Text, max_tokens: int, stops: Sequence[str], seed: int | None, answer: Answer | None
    ) -> Text:
        """All that a branch writes after ``start``, its threads in it."""
        completer = self._completer
        written = completer.encode("")
        while True:
            piece = await completer.complete(start + written, max_tokens, stops, seed, answer)
            written = written + piece
            if not (said := completer.decode(written)).endswith(TRIGGER):
                return written
            numbers = [m["number"] for m in _NUMBER.finditer(said, said.rindex("<Outlines>"))]
            context = start + written
            threads = await asyncio.gather(
                *(
                    self._branch(
                        context + completer.encode(header(n)), max_tokens, (TRIGGER, THREAD_END), seed, None
                    )
                    for n in numbers
                )
            )
            for i, (number, thread) in enumerate(zip(numbers, threads, strict=True)):
                written = written + completer.encode(joined_header(number, first=i == 0)) + thread
            written = written + completer.encode(JOIN_TEXT)
