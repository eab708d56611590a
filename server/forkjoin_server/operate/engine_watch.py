"""Asks the engines of a server, as long as it serves, whether they live.

The question is a call of vLLM's own that takes no time. An engine core answers it between two steps, on
the way that outputs take, so the answer proves that its loop turns, that its workers come to the end of
their steps, and that outputs reach this process. There is one question at a time: a stopped engine finds
one when it goes on, not thousands.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from forkjoin_scheduler.errors import UsageError
from forkjoin_server.operate.pulse import Pulse

#: Between an answer and the next question.
INTERVAL_S = 1.0
#: Any that an engine core answers at once and that changes nothing.
_QUESTION = "is_scheduler_paused"


class WatchSettings(BaseModel):
    """The settings of engines that do not answer.

    A step that prefills 32k tokens takes a few seconds; vLLM itself gives up a worker after 300 s.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ready_timeout: float = Field(
        default=15,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without an answer of an engine after which /ready returns 503.",
    )
    health_timeout: float = Field(
        default=120,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without an answer of an engine after which /health returns 503, so that the "
        "server is restarted. At least --ready-timeout.",
    )

    def check(self) -> None:
        """Raise UsageError if a server would be started again before it is not ready."""
        if self.health_timeout < self.ready_timeout:
            raise UsageError(
                f"--health-timeout: expected at least the --ready-timeout, {self.ready_timeout:g} s, got "
                f"{self.health_timeout:g} s: a server that gets no requests may recover, one that is started "
                "again loses those it has"
            )


class EngineWatch:
    """Watches the engines of ``client``, vLLM's AsyncLLM. Made while these run."""

    def __init__(self, client: Any) -> None:
        self._client, self._core = client, client.engine_core
        self._pulse = Pulse(time.monotonic())
        self._processes = multiprocessing.active_children()
        self._num_taken = 0
        self._is_over = False
        self._count_what_is_taken()

    def _count_what_is_taken(self) -> None:
        """Count how often vLLM's output handler, which asks for each output, comes for another."""
        take = self._core.get_output_async

        async def get_output_async() -> Any:
            self._num_taken += 1
            return await take()

        self._core.get_output_async = get_output_async

    def stop(self) -> None:
        """The engines are being shut down. Nothing that they do from now on is a fault."""
        self._is_over = True

    @property
    def has_been_answered(self) -> bool:
        """Whether all engines have answered once."""
        return self._pulse.has_begun

    def complaint(self, limit_s: float) -> str | None:
        """What has died, or has shown no sign of life for ``limit_s``; None if nothing has."""
        return self.death() or self._pulse.silence(time.monotonic(), limit_s)

    def death(self) -> str | None:
        """What has died and can't come back, None if nothing has."""
        if self._is_over:
            return None
        for process in self._processes:
            if process.exitcode not in (None, 0):
                return f"{process.name} (pid {process.pid}) has died with status {process.exitcode}"
        if self._client.errored:
            is_engine = self._core.resources.engine_dead
            return "the engine has died" if is_engine else "the task that takes the engine's outputs has died"
        return None

    async def run(self, patience_s: float) -> str | None:
        """Ask until an engine has died, and return that; or until ``stop``.

        A question that nobody has answered in ``patience_s`` is put again: the engine that it went to may
        be none of the server's any more.
        """
        while not self._is_over and (death := self.death()) is None:
            question = asyncio.ensure_future(self._core.call_utility_all_async(_QUESTION))
            try:
                await self._until_answered(question, patience_s)
            finally:
                question.cancel()
        return None if self._is_over else death

    async def _until_answered(self, question: asyncio.Future[Any], patience_s: float) -> None:
        end = time.monotonic() + patience_s
        while not self._is_over and self.death() is None and time.monotonic() < end:
            done, _ = await asyncio.wait([question], timeout=INTERVAL_S)
            now = time.monotonic()
            num_waiting = self._core.outputs_queue.qsize()
            self._pulse.saw_outputs(now, num_taken=self._num_taken, num_waiting=num_waiting)
            if done:
                # also by a refusal, as when it drains
                with contextlib.suppress(Exception):
                    question.result()
                self._pulse.answered(now)
                await asyncio.sleep(INTERVAL_S)
                return
