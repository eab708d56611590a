"""``GET /v1/forkjoin/families``: what each engine does at the moment, for an operator to see.

An engine core answers between two steps. There is one question at a time, for all who ask, and its answer is
good for a second: so however often clients ask, engines are asked once a second at most, and a stopped engine
finds one question when it goes on. Nobody waits longer than ``LIMIT_S``.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

from forkjoin_scheduler.policy.backlog import Tenant
from forkjoin_server.asgi import Json

PATH = "/v1/forkjoin/families"
#: A step that prefills a long prompt takes a few seconds.
LIMIT_S = 5.0
#: How long an answer is given again.
GOOD_FOR_S = 1.0
#: Then a question is put again: the engine that it went to may be none of the server's any more.
PATIENCE_S = 60.0
#: See the scheduler's ``engine_calls.py``.
_QUESTION = "forkjoin_overview"
#: What vLLM appends to the id that an answer and the log have.
_RANDOM = re.compile(r"-[0-9a-f]{8}\Z")


class NoAnswer(Exception):
    """The engines have not said what they do; the message says why."""


class Families:
    """Asks the engines of ``core``, the engine core client of vLLM's AsyncLLM."""

    def __init__(self, core: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._core, self._clock = core, clock
        self._question: asyncio.Future[list[Json]] | None = None
        self._asked_at = self._answered_at = 0.0

    async def shown_to(self, tenant: Tenant) -> Json:
        """The answer as ``tenant`` may see it. Raises NoAnswer while an engine does not give one."""
        engines = await self._ask()
        return {
            "object": "forkjoin.families",
            "age_s": round(self._clock() - self._answered_at, 3),
            "engines": [
                {
                    **engine,
                    "families": [_shown(family, tenant) for family in engine["families"]],
                    "kept": _kept(engine["kept"], tenant),
                }
                for engine in sorted(engines, key=lambda engine: int(engine["engine"]))
            ],
        }

    async def _ask(self) -> list[Json]:
        question = self._current()
        done, _ = await asyncio.wait([question], timeout=LIMIT_S)
        if not done:
            waited_s = self._clock() - self._asked_at
            raise NoAnswer(
                f"expected every engine to answer within {LIMIT_S:g} s, one has not for {waited_s:.0f} s: it "
                "is in a long step, or hangs. Ask again; /ready says when the server gives it up"
            )
        if question.cancelled():  # another client found it too old
            raise NoAnswer(
                f"expected every engine to answer within {PATIENCE_S:g} s, one has not, so the server asks "
                "again: ask again, too; /ready says when the server gives the engine up"
            )
        try:
            return question.result()
        except Exception as error:  # of whatever kind vLLM makes of an engine that can't answer
            raise NoAnswer(f"expected every engine to say what it does, got an error: {error}") from error

    def _current(self) -> asyncio.Future[list[Json]]:
        """The question that is being answered, or was a moment ago; else a new one."""
        now = self._clock()
        if self._question is not None:
            is_answered = self._question.done()
            age_s = now - (self._answered_at if is_answered else self._asked_at)
            if age_s < (GOOD_FOR_S if is_answered else PATIENCE_S):
                return self._question
            self._question.cancel()
        self._question, self._asked_at = (
            asyncio.ensure_future(self._core.call_utility_all_async(_QUESTION)),
            now,
        )
        self._question.add_done_callback(self._note_answer)
        return self._question

    def _note_answer(self, question: asyncio.Future[list[Json]]) -> None:
        self._answered_at = self._clock()
        if not question.cancelled():
            question.exception()  # it is raised to those who asked, if anybody still waits


def _shown(family: Json, tenant: Tenant) -> Json:
    """``family`` without whose it is, and without its id if it is another's: clients may choose ids."""
    family = dict(family)
    is_own = family.pop("tenant") == tenant.id
    request_id = _RANDOM.sub("", family["request_id"])
    return family | {"request_id": request_id if is_own or tenant.sees_all else None}


def _kept(kept: Json, tenant: Tenant) -> Json:
    """``kept`` with the same done to each answer."""
    return kept | {"answers": [_shown(answer, tenant) for answer in kept["answers"]]}
