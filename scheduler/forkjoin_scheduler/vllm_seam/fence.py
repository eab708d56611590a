"""A fence round each family: an error in fork/join code ends the family it happened in, and no other.

What vLLM calls does its fork/join part inside the fence: ``fenced`` and ``each`` where vLLM waits
for us to return, ``contain`` in hooks that vLLM calls in the middle of its own work. Those give vLLM
a safe answer, and the family is evicted as soon as vLLM has returned. vLLM's own code stays outside.

A family that failed can't be trusted to know what it has. So it is evicted from first principles:
whatever names one of its requests is dropped, in all parts that keep such, and each
block goes back that nobody owns any more. Then all accounts must agree, or the error goes on to end the
engine: a lost block or a request in no queue would be a standstill some time later, and others' answers
could be wrong.

Invariants (pinned by tests): the client gets one end, an error; nothing names the family any more;
every other request has the blocks and the place it had.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

from forkjoin_scheduler.errors import EnginePlace, NoGrammar, OwnPolicy, TornState
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.policy.own import WrongAnswer
from forkjoin_scheduler.publish.events import Event, FamilyEnded, InternalError, ThreadEnded
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.kv_job import KVJob
from forkjoin_scheduler.vllm_seam.core import Core, logger
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import connector, queues

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Named = TypeVar("Named")

#: What stands after a request's id in those of its threads and fills.
_OF_FAMILY = re.compile(r"#(?:fill)?\d+\Z")
#: What follows when a policy of the user's own has raised, where the built-in one does not take its place.
_AND_THEN = {"prune_policy": "this vote continues without it"}


@dataclass(frozen=True)
class Obituary:
    """What the front end hears of a family that failed.

    ``ends``: whether its request still waits for an end.
    """

    request_id: str
    client_index: int
    events: list[Event]
    ends: bool


class Fence:
    """Contains errors, and evicts the families that they happened in."""

    def __init__(self, core: Core) -> None:
        self._core = core
        #: Where each family failed that is not evicted yet, by the id of its request; None if that was no
        #: error of ours.
        self._failed: dict[str, EnginePlace | None] = {}
        self._obituaries: list[Obituary] = []
        #: What keeps something of families.
        self._parts: tuple[object, ...] = ()

    def look_through(self, parts: Iterable[object]) -> None:
        """Let these be all that may keep something of a family, beside vLLM."""
        self._parts = tuple(parts)

    @property
    def has_obituaries(self) -> bool:
        """Whether the front end has yet to hear of a family that failed."""
        return bool(self._obituaries)

    # ---- what hooks call -------------------------------------------------------------------

    def fenced(self, where: EnginePlace, of: object, do: Callable[..., object], *args: Any) -> bool:
        """Call ``do(*args)``, of whose errors the family of ``of`` fails; returns whether it raised none."""
        is_well = True
        try:
            do(*args)
        except Exception as error:  # whatever it is: what may be hurt is checked below
            self.contain(where, error, of)
            is_well = False
        if self._failed:
            self.evict_failed()
        return is_well

    def each(self, where: EnginePlace, calls: Iterable[tuple[Any, ...]], do: Callable[..., object]) -> None:
        """Call ``do`` with each of ``calls``, whose first argument says whose it is.

        A family may have failed before its turn comes: in the middle of vLLM's work, or by what another does.
        """
        self.evict_failed()
        for args in calls:
            if not (self._obituaries and self._is_evicted(root_id(args[0]))):
                self.fenced(where, args[0], do, *args)

    def _is_evicted(self, request_id: str | None) -> bool:
        """Whether the family has failed since obituaries were published last."""
        return any(obituary.request_id == request_id for obituary in self._obituaries)

    def sift(self, where: EnginePlace, items: list[Item], takes: Callable[[Item], bool]) -> list[Item]:
        """Those of ``items`` that ``takes`` does not take; of its errors the family of the item fails."""
        left = []
        for item in items:  # no call of ours more than must be: these are all outputs of a step
            try:
                is_taken = takes(item)
            except Exception as error:
                self.contain(where, error, item)
                self.evict_failed()
                is_taken = False
            if not is_taken:
                left.append(item)
        return left

    def answer(
        self, where: EnginePlace, of: Item, ask: Callable[[Item], Answer], otherwise: Answer
    ) -> Answer:
        """What ``ask`` answers of ``of`` in the middle of vLLM's work; ``otherwise`` where that raises."""
        try:
            return ask(of)
        except Exception as error:
            self.contain(where, error, of)
        return otherwise

    def contain(self, where: EnginePlace, error: BaseException, of: object) -> None:
        """Note that the family of ``of`` failed (None: it was nobody's error). Says so in the log, once."""
        request_id = root_id(of)
        if request_id is None:
            self._count_nobodys(where)
            logger.error(
                "an error in fork/join code (%s): the engine continues without it", where, exc_info=error
            )
        elif request_id in self._failed:
            return
        elif isinstance(error, NoGrammar):
            self._failed[request_id] = None
            logger.error("%s: ends this request, and no other", error)
        else:
            self._failed[request_id] = where
            message = "%s: an error in fork/join code (%s) ends this request, and no other"
            extra = {"forkjoin": {"request_id": request_id}}
            logger.error(message, request_id, where, exc_info=error, extra=extra)

    def blame(self, setting: OwnPolicy, where: EnginePlace, error: BaseException) -> None:
        """Note that the policy asked at ``where`` raised: the user's own, where ``setting`` names one.

        ``error`` is a WrongAnswer where it answered, but with nothing that can be used.
        No request fails of that. The log names the policy, and it is counted as no error of ours.
        """
        path = getattr(self._core.settings, setting)
        if path is None:
            self.contain(where, error, None)
            return
        self._count_nobodys(setting)
        flag = f"--{setting.replace('_', '-')}"
        then = _AND_THEN.get(setting, "the built-in policy takes its place")
        if isinstance(error, WrongAnswer):
            logger.error("your policy %s (%s): %s: %s", path, flag, error, then)
            return
        kind = type(error).__name__
        logger.error("your policy %s (%s) raised %s: %s", path, flag, kind, then, exc_info=error)

    def _count_nobodys(self, where: EnginePlace | OwnPolicy) -> None:
        self._obituaries.append(Obituary("", 0, [InternalError(where=where)], ends=False))

    def evict_failed(self) -> None:
        """Evict all families that failed. Raises TornState if the accounts do not agree after that."""
        while self._failed:
            request_id = next(iter(self._failed))
            self._obituaries.append(self._obituary(request_id))
            self._evict_family(request_id)
            self._check_accounts(request_id)
            del self._failed[request_id]

    def publish_obituaries(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Let the front end know of what failed: the last that it hears of these requests."""
        obituaries, self._obituaries = self._obituaries, []
        for obituary in obituaries:
            of_client = result.setdefault(obituary.client_index, EngineCoreOutputs())
            of_client.outputs.insert(0, wire.pack(obituary.request_id, obituary.events, self._core.engine))
            if obituary.ends:
                # Also an end that vLLM has made in this step: of that the family was not done yet.
                of_client.outputs = [o for o in of_client.outputs if o.request_id != obituary.request_id]
                of_client.outputs.append(
                    EngineCoreOutput(obituary.request_id, [], finish_reason=FinishReason.ERROR)
                )

    # ---- eviction --------------------------------------------------------------------------

    def _obituary(self, request_id: str) -> Obituary:
        live = next((f for f in self._families() if f.family.request_id == request_id), None)
        request = self._core.requests.get(request_id) or (None if live is None else live.request)
        events: list[Event] = []
        if live is not None:
            with contextlib.suppress(Exception):  # of a family that failed nothing is sure
                events = _last_events(live)
        where = self._failed[request_id]
        told = events if where is None else [*events, InternalError(where=where)]
        if request is None:
            return Obituary(request_id, 0, told, ends=False)
        ends = request_id in self._core.live or not request.is_finished()
        return Obituary(request_id, request.client_index, told, ends)

    def _evict_family(self, request_id: str) -> None:
        """Drop whatever names the family of ``request_id``; all that it held returns to the pool."""
        jobs = [job for job in self._named(KVJob) if root_id(job.live) == request_id]
        jobs += [j for live in self._families() if live.family.request_id == request_id for j in live.jobs]
        for job in jobs:
            if job.work is not None:
                with contextlib.suppress(Exception):  # what it does at its end concerns nobody any more
                    job.work.close()
        for request in queues.take_out(self._core.scheduler, lambda r: root_id(r) == request_id):
            if connector.has_ended_before_load(self._core.scheduler, request):
                continue
            ends_later = connector.ends_with_load(self._core.scheduler, request)
            request.status = RequestStatus.FINISHED_ERROR
            self._core.scheduler._free_request(request, ends_later)
        for container in self._containers():
            _purge(container, request_id)
        known = self._core.requests
        kv.drop_tables(self._core.kv_cache_manager, lambda i: root_id(i) == request_id and i not in known)
        kv.free_unowned(self._core.kv_cache_manager, self._owned())

    def _check_accounts(self, request_id: str) -> None:
        """Raise TornState unless each block has its owners and each request its place."""
        wrong = kv.miscounted(self._core.kv_cache_manager, self._owned()) or queues.misplaced(
            self._core.scheduler
        )
        if wrong:
            raise TornState(
                f"expected the accounts to agree after the eviction of {request_id}, found {wrong}: "
                "other requests may be hurt, so the engine ends"
            )

    def _containers(self) -> Iterator[Any]:
        """All lists, sets and dictionaries that are ours."""
        for part in self._parts:
            yield from vars(part).values()

    def _families(self) -> list[LiveFamily]:
        """All families that something of ours names."""
        return self._named(LiveFamily)

    def _named(self, kind: type[Named]) -> list[Named]:
        """All of a kind that something of ours names, each once."""
        found: dict[int, Named] = {}
        for container in self._containers():
            if isinstance(container, dict):
                container = container.values()
            elif not isinstance(container, list):
                continue
            for entry in container:
                for part in entry if isinstance(entry, tuple) else (entry,):
                    if isinstance(part, kind):
                        found[id(part)] = part
        return list(found.values())

    def _owned(self) -> Counter[int]:
        """How often each block, by its id, is held beside the tables of requests."""
        held = [h for stitched in self._named(kv.Stitched) for h in stitched.rest]
        held += self._named(kv.HeldBlocks)
        for live in self._families():
            held += live.held.values()
            held += [h for job in live.jobs for h in job.unclaimed_blocks]
        owned = Counter(b.block_id for h in held for blocks in h.blocks for b in blocks)
        owned.update(b.block_id for _, blocks in self._core.scheduler.deferred_frees for b in blocks)
        return owned


def root_id(of: object) -> str | None:
    """The id of the request of whose family ``of`` is, or is one of the requests; None if of none."""
    if isinstance(of, LiveFamily):
        return of.family.request_id
    if isinstance(of, tuple):
        return next((found for part in of if (found := root_id(part))), None)
    request_id = of if isinstance(of, str) else getattr(of, "request_id", None)
    return _OF_FAMILY.sub("", request_id) if isinstance(request_id, str) else None


def drained(waiting: list[Any]) -> list[Any]:
    """What was in ``waiting``, which is empty then."""
    taken = list(waiting)
    waiting.clear()
    return taken


def _purge(container: Any, request_id: str) -> None:
    """Take out of ``container`` what names the family of ``request_id``."""
    if isinstance(container, dict):
        for key in [k for k, v in container.items() if request_id in (root_id(k), root_id(v))]:
            del container[key]
    elif isinstance(container, list):
        container[:] = [entry for entry in container if root_id(entry) != request_id]
    elif isinstance(container, set):
        container.difference_update([entry for entry in container if root_id(entry) == request_id])


def _last_events(live: LiveFamily) -> list[Event]:
    """What was noted of the family and has not left, and the ends of all threads that it has emitted."""
    noted = {event.index for event in live.events if isinstance(event, ThreadEnded)}
    for thread in live.family.threads[: live.num_announced]:
        if thread not in live.emitted_ends and thread.index not in noted:
            live.emitted_ends.add(thread)
            num_tokens = thread.num_generated
            live.emit(ThreadEnded(index=thread.index, reason=ThreadEnd.CANCELLED, num_tokens=num_tokens))
    if not live.has_emitted_end:
        live.emit(live.counts(FamilyEnded))
    return live.events
