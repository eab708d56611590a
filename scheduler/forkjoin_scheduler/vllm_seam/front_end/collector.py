"""What of a stream waits to be written: handed out a piece at a time where its tokens have logprobs.

vLLM merges all that has come into one output, and writes it as one event. With 20 alternatives a token
takes half a millisecond to write; a thread's whole text at its turn, or what a client has not read when
it is disconnected, is thousands of tokens: seconds in which the event loop answers nobody. So an output
grows no longer than a piece; and of all streams together, only so many write in a turn of the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from vllm.outputs import RequestOutput
from vllm.v1.engine.output_processor import RequestOutputCollector

#: Tokens with logprobs: some milliseconds, with 20 alternatives.
PIECE_TOKENS = 8
#: Seconds of a turn of the event loop in which streams with logprobs may begin to write.
TURN_S = 0.03


class _Turn:
    """A turn of the event loop, as far as it has come."""

    _began: float | None = None

    async def take(self) -> None:
        """Wait for a turn in which there is still time to write."""
        while self._is_over():
            await asyncio.sleep(0)

    def _is_over(self) -> bool:
        now = time.monotonic()
        if self._began is None:
            self._began = now
            asyncio.get_running_loop().call_soon(self._end)
        return now - self._began > TURN_S

    def _end(self) -> None:
        self._began = None


_TURN = _Turn()


class PieceCollector(RequestOutputCollector):
    """vLLM's, whose merged outputs grow no longer than a piece."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: After ``output``, in their order.
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
        if self.output is None:
            await self.ready.wait()
        if _has_logprobs(self.output):
            await _TURN.take()
        output = await super().get()
        self._go_on()
        return output

    def get_nowait(self) -> Any:
        """The next output if there is one that may be written at once."""
        if _has_logprobs(self.output):
            return None
        output = super().get_nowait()
        self._go_on()
        return output

    def _go_on(self) -> None:
        if self._later:
            self.output = self._later.popleft()
            self.ready.set()


def _has_logprobs(output: object) -> bool:
    return isinstance(output, RequestOutput) and any(completion.logprobs for completion in output.outputs)


def _is_piece(output: object) -> bool:
    """Whether so much is in ``output`` that nothing is to be added."""
    if not isinstance(output, RequestOutput):
        return False
    return sum(len(completion.logprobs or ()) for completion in output.outputs) >= PIECE_TOKENS
