"""What an engine does at the moment: its families, their threads and KV blocks, for an operator to see.

Nothing is kept for it. It is counted between two steps when somebody asks, and changes nothing. It takes a
bounded time: of more families than that allows, the rest is left out and counted.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain, islice
from typing import Any

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.waits import Wait
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import Fence
from forkjoin_scheduler.vllm_seam.kept.leasing import Leasing
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts.admission_gate import AdmissionGate
from forkjoin_scheduler.vllm_seam.starts.sharing import tenant_of
from forkjoin_scheduler.vllm_seam.starts.waiting import Waiters

#: Families that are shown at most.
MAX_FAMILIES = 100
#: Seconds of CPU time after which no further family is looked at: much less than a step takes.
MAX_S = 0.005
_THREAD_STATES = ("running", "waiting", "parked", "ended")

Row = dict[str, Any]


class Overview:
    """Says what runs and what waits. Keeps nothing."""

    def __init__(
        self, core: Core, fence: Fence, jobs: KVJobs, gate: AdmissionGate, waits: Waiters, leasing: Leasing
    ) -> None:
        self._core, self._fence, self._jobs, self._gate, self._waits = core, fence, jobs, gate, waits
        self._leasing = leasing

    def now(self) -> Row:
        """The families, those that have begun first, each group in the order of arrival."""
        begun, end = self._begun(), time.thread_time() + MAX_S
        num_families, rows = len(begun) + len(self._core.scheduler.waiting), []
        next_to_start = self._core.scheduler.waiting.peek_request() if self._core.scheduler.waiting else None
        for i, root in enumerate(islice(chain(begun, self._core.scheduler.waiting), MAX_FAMILIES)):
            if time.thread_time() > end:
                break
            try:
                rows.append(self._row(root, is_behind=i >= len(begun) and root is not next_to_start))
            except Exception as error:  # it costs its row: a family does not end because it can't be shown
                self._fence.contain("overview", error, None)
        manager, admission = self._core.kv_cache_manager, self._gate.admission
        num_threads, num_requests = self._waits.count()
        return {
            "engine": self._core.engine,
            "kv_blocks": {
                "total": kv.num_blocks(manager),
                "free": kv.num_free_blocks(manager),
                "tokens_per_block": kv.block_size(manager),
            },
            "waiting": {
                "requests": num_requests,
                "threads": num_threads,
                "for_room": self._gate.step_admission.num_kept,
            },
            "expected": {
                "tokens": round(admission.expected, 1),
                "threads": round(admission.width.mean, 1),
                "forking_share": round(admission.forks.mean, 3),
            },
            "kept": self._leasing.now(),
            "num_families": num_families,
            "num_left_out": num_families - len(rows),
            "families": rows,
        }

    def _begun(self) -> list[Request]:
        """The requests of clients that have begun, whether they run, wait or are parked."""
        roots = {live.family.request_id: live.request for live in self._core.live.values()}
        for request in (*self._core.scheduler.running, *self._core.scheduler.kv_holding_waiting):
            if request.request_id not in self._core.threads and request.request_id not in self._jobs.prefills:
                roots[request.request_id] = request
        return sorted(roots.values(), key=lambda request: request.arrival_time)

    def _row(self, root: Request, *, is_behind: bool) -> Row:
        """``is_behind``: another request is to start before it."""
        live, admitted = self._core.live.get(root.request_id), self._gate.admitted.get(root.request_id)
        total, _, critical = self._gate.written(root)
        blocks = self._gate.holds(root)[0] if admitted is None else self._gate.come_to(admitted).blocks
        states, waits = self._thread_states([] if live is None else live.family.threads)
        state = self._family_state(root, live)
        if state == "waiting":
            waits[_wait_of_root(root, is_behind=is_behind)] += 1
        return {
            "request_id": root.request_id,
            "tenant": tenant_of(root)[0],
            "age_s": round(max(time.time() - root.arrival_time, 0), 3),
            "state": state,
            "waits_for": [wait for wait, _ in waits.most_common()],
            "threads": {state: states[state] for state in _THREAD_STATES},
            "total_tokens": total,
            "critical_path_tokens": critical,
            "kv_blocks": blocks,
            "peak_kv_blocks": None if admitted is None else admitted.peak_blocks,
            "expected_kv_blocks": None if admitted is None else round(admitted.expected_blocks, 1),
        }

    def _family_state(self, root: Request, live: LiveFamily | None) -> str:
        """What the family does: of its threads, once it has forked."""
        is_prefilled = root.num_computed_tokens >= root.num_prompt_tokens
        if live is not None:
            if live.family.has_live_threads:
                return "forked"
            if root.status != RequestStatus.PREEMPTED and live.family.root.num_joined and not is_prefilled:
                return "joining"  # what was joined is the prompt of what follows
        if root.status != RequestStatus.RUNNING:
            return "waiting"
        return "decoding" if is_prefilled else "prefill"

    def _thread_states(self, threads: list[Branch]) -> tuple[Counter[str], Counter[Wait]]:
        """How many of ``threads`` are in each state, and what those wait for that wait."""
        states, waits = Counter[str](), Counter[Wait]()
        for thread in threads:
            if thread.end is not None or not thread.is_live:
                states["ended"] += 1
            elif thread.state is BranchState.PARKED:
                states["parked"] += 1
            elif (wait := self._waits.wait_of(thread)) is None:
                states["running"] += 1
            else:
                states["waiting"] += 1
                waits[wait] += 1
        return states, waits


def _wait_of_root(root: Request, *, is_behind: bool) -> Wait:
    """What a request waits for that does not run."""
    if root.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
        return "grammar"
    return "turn" if is_behind else "room"
