"""What of a stream waits to be written: handed out a piece at a time where its tokens have logprobs.

vLLM merges all that has come into one output, and writes it as one event. With 20 alternatives a token
takes half a millisecond to write; a thread's whole text at its turn, or what a client has not read when
it is disconnected, is thousands of tokens: seconds in which the event loop answers nobody. So an output
grows no longer than a piece; and of all streams together, one piece is written in a turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from vllm.outputs import RequestOutput
from vllm.v1.engine.output_processor import RequestOutputCollector

#: Tokens with logprobs: some milliseconds, with 20 alternatives.
PIECE_TOKENS = 8


class _Turns:
    """Lets one stream at a time write a piece, and the event loop do all else in between."""

    _loop: asyncio.AbstractEventLoop | None = None
    _lock: asyncio.Lock

    async def take(self) -> None:
        """Wait for a turn of this stream's own."""
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._loop, self._lock = loop, asyncio.Lock()
        async with self._lock:
            await asyncio.sleep(0)


_TURNS = _Turns()


class PieceCollector(RequestOutputCollector):
    """vLLM's, whose merged outputs grow no longer than a piece."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        #: Behind ``output``, in their order.
        self._later: deque[RequestOutput] = deque()

    def put(self, output: Any) -> None:
        """Keep ``output`` until it is asked for. An error goes before all that is kept."""
        if not isinstance(output, RequestOutput):
            self._later.clear()
            super().put(output)
        elif self._later and not _is_piece(self._later[-1]):
            self._later[-1].add(output, aggregate=True)
        elif self._later or (self.aggregate and _is_piece(self.output)):
            self._later.append(output)
        else:
            super().put(output)

    async def get(self) -> Any:
        """The next output. Raises the error that was put in its place."""
        if _is_piece(self.output):
            await _TURNS.take()
        output = await super().get()
        self._go_on()
        return output

    def get_nowait(self) -> Any:
        """The next output if there is one that needs no turn of its own."""
        if _is_piece(self.output):
            return None
        output = super().get_nowait()
        self._go_on()
        return output

    def _go_on(self) -> None:
        if self._later:
            self.output = self._later.popleft()
            self.ready.set()


def _is_piece(output: object) -> bool:
    """Whether so much is in ``output`` that nothing is to be added."""
    if not isinstance(output, RequestOutput):
        return False
    return sum(len(completion.logprobs or ()) for completion in output.outputs) >= PIECE_TOKENS
