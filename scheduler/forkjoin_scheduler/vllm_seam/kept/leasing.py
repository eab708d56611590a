"""Keeps the KV blocks of answers whose clients ask for it: a lease is one more holder of each block.

So the prefix cache finds them however much else runs, and a request that goes on from the answer prefills
only what is new. Which lease is granted, and which ends, ``policy/leases.py`` decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.request import Request

from forkjoin_scheduler.policy.leases import KeepRefusal, Lease, LeaseEnd
from forkjoin_scheduler.publish.events import Continued, Event, Kept, Leased
from forkjoin_scheduler.publish.feed import key_in
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.core import CAPPED, STOPPED, Core, logger
from forkjoin_scheduler.vllm_seam.fence import Fence, drained
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_scheduler.vllm_seam.starts.admission_gate import AdmissionGate
from forkjoin_scheduler.vllm_seam.starts.sharing import max_kept_tokens_of, tenant_of

#: Leases that an operator is shown at most.
MAX_SHOWN = 100
#: What a client hears that lets go of a lease.
RELEASED, UNKNOWN = "released", "unknown"


@dataclass(frozen=True)
class Asked:
    """What a request asks for: to keep its answer for ``keep_s`` seconds, and to go on from ``name``."""

    keep_s: float | None
    name: str | None


class Leasing:
    """Owns the blocks of kept answers, and what requests ask of them."""

    def __init__(
        self, core: Core, fence: Fence, gate: AdmissionGate, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._core, self._gate, self._clock = core, gate, clock
        manager = core.kv_cache_manager
        self._can_keep = manager.enable_caching and not kv.is_recurrent(manager)
        #: By the id of the request.
        self._asked: dict[str, Asked] = {}
        #: By the lease; and the last step that may write them still. (Not by a name that may be a request's,
        #: whose family's end is not the lease's.)
        self._held: dict[Lease, tuple[kv.HeldBlocks, int]] = {}
        #: Events that have not left: the front end, the request and what it hears.
        self._told: list[tuple[int, str, Event]] = []
        self._ends: list[LeaseEnd] = []
        self._is_changed = False
        if core.bound_dialect is not None:
            kv.let_give_way(
                manager, lambda needed: fence.answer("keep", None, lambda _: self._give_way(needed), False)
            )

    # ---- a request -------------------------------------------------------------------------

    def attach(self, request: Request, options: CompiledOptions) -> None:
        """Note what a new ``request`` asks to be kept, and what it goes on from."""
        name = None if options.continues is None else name_of(options.continues)
        if options.keep is None and name is None:
            return
        self._asked[request.request_id] = Asked(options.keep, name)
        if name is not None and (lease := self._core.leases.find(name, tenant_of(request)[0])):
            self._core.leases.use(lease, self._clock())

    def started(self, request_id: str) -> None:
        """A request runs for the first time: tell whether what it goes on from is kept still."""
        asked, request = self._asked.get(request_id), self._core.requests.get(request_id)
        if asked is None or asked.name is None or request is None:
            return
        self._asked[request_id] = replace(asked, name=None)  # one that is preempted starts again
        state = self._core.leases.state(asked.name, tenant_of(request)[0])
        if state is not None:
            self._told.append((request.client_index, request_id, Continued(state=state)))

    def ended(self, request: Request) -> None:
        """A request has ended and holds its blocks still: keep them, if it asked for that."""
        asked = self._asked.pop(request.request_id, None)
        if asked is None or asked.keep_s is None:
            return
        if not (request.status in (STOPPED, CAPPED) or self._gate.has_stop_string(request)):
            return
        refusal, num_tokens = self._keep(request, asked.keep_s)
        kept = Kept(num_tokens=num_tokens, seconds=asked.keep_s, refusal=refusal)
        self._told.append((request.client_index, request.request_id, kept))

    def _keep(self, request: Request, keep_s: float) -> tuple[KeepRefusal | None, int]:
        """Keep what the prefix cache has of ``request``: why not, or so many tokens."""
        core, manager, now = self._core, self._core.kv_cache_manager, self._clock()
        name, tenant = name_of(request.request_id), tenant_of(request)[0]
        if before := core.leases.find(name, tenant):  # an earlier turn of the same answer
            self._end(before, "released")
        found, num_tokens = kv.cached_blocks(manager, request) if self._can_keep else ([], 0)
        blocks = frozenset(block.block_id for group in found for block in group)
        max_own = max_kept_tokens_of(request) / kv.block_size(manager)
        if refusal := core.leases.refusal(tenant, blocks, max_own):
            return refusal, 0
        lease = Lease(
            name,
            tenant,
            blocks,
            num_tokens,
            expires_at=now + keep_s,
            used_at=now,
            answer_id=request.request_id,
        )
        self._held[lease] = kv.hold_too(manager, found, num_tokens), core.scheduler.sched_step_seq
        core.leases.add(lease)
        self._is_changed = True
        return None, num_tokens

    def forget(self, request_id: str) -> None:
        """Keep nothing of a request that vLLM has forgotten."""
        self._asked.pop(request_id, None)

    # ---- ends of leases --------------------------------------------------------------------

    def expire(self) -> None:
        """End the leases whose time is over."""
        for lease in self._core.leases.expired(self._clock()):
            self._end(lease, "expired")

    def _give_way(self, num_needed: Callable[[], int]) -> bool:
        """The same, for a request that so many blocks may be enough for: if not, nothing need give way."""
        has_leases = len(self._core.leases) > 0
        return has_leases and num_needed() <= self._core.num_free_blocks() and self.make_room()

    def make_room(self) -> bool:
        """Let one lease give way to what runs or waits; returns whether one did."""
        lease = self._core.leases.victim(lambda block: kv.num_holders(self._core.kv_cache_manager, block))
        if lease is None:
            return False
        logger.warning(
            "the kept answer %s gives up its %s KV blocks to running requests: what goes on from it may be "
            "prefilled again",
            lease.name,
            len(lease.blocks),
        )
        self._end(lease, "pressure")
        return True

    def reset(self) -> None:
        """End all leases: the prefix cache is about to forget what they hold."""
        for lease in list(self._core.leases):
            self._end(lease, "reset")

    def release(self, name: str, tenant: str) -> str:
        """``tenant`` needs its lease no more. Returns what it hears."""
        lease = self._core.leases.find(name_of(name), tenant)
        if lease is None:
            return UNKNOWN
        self._end(lease, "released")
        return RELEASED

    def _end(self, lease: Lease, why: LeaseEnd) -> None:
        self._core.leases.end(lease, why)
        self._ends.append(why)
        self._is_changed = True
        held, last_step = self._held.pop(lease)
        if last_step <= self._core.scheduler.processed_step_seq:  # nothing writes them: no need to wait
            kv.return_held(self._core.kv_cache_manager, held)
        else:
            kv.release(self._core.kv_cache_manager, held)

    # ---- what is told ----------------------------------------------------------------------

    @property
    def is_asked(self) -> bool:
        """Whether a request asks for anything of leases."""
        return bool(self._asked)

    @property
    def has_told(self) -> bool:
        """Whether there is something to emit."""
        return bool(self._told) or self._is_changed

    @property
    def has_news(self) -> bool:
        """Whether a step is wanted, though nothing runs: to tell of leases, or to end one."""
        return self._is_changed or self._core.leases.next_end <= self._clock()

    def emit(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Put what is new into ``result``: before the ends of the requests that hear it."""
        engine = self._core.engine
        for client_index, request_id, event in drained(self._told):
            outputs = result.setdefault(client_index, EngineCoreOutputs()).outputs
            outputs.insert(0, wire.pack(request_id, [event], engine))
        if self._is_changed:
            self._is_changed = False
            leases = self._core.leases
            event = Leased(num_leases=len(leases), num_blocks=leases.num_blocks, ends=drained(self._ends))
            result.setdefault(0, EngineCoreOutputs()).outputs.append(wire.pack("", [event], engine))

    def now(self) -> dict[str, Any]:
        """The leases, those first that end first, for an operator to see."""
        self.expire()
        leases, now = self._core.leases, self._clock()
        shown = sorted(leases, key=lambda lease: lease.expires_at)[:MAX_SHOWN]
        return {
            "kv_blocks": leases.num_blocks,
            "max_kv_blocks": leases.max_blocks,
            "num_answers": len(leases),
            "answers": [
                {
                    "request_id": lease.answer_id,
                    "tenant": lease.tenant,
                    "tokens": lease.num_tokens,
                    "kv_blocks": len(lease.blocks),
                    "expires_in_s": round(lease.expires_at - now, 3),
                    "num_continued": lease.num_continued,
                }
                for lease in shown
            ],
        }


def name_of(request_id: str) -> str:
    """What the lease of a request is called: by the server's key in its id, or by the id without a server."""
    return key_in(request_id) or request_id
