"""Which family gives its blocks back, by the server's policy (``policy/eviction.py``)."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.v1.core.sched.request_queue import SchedulingPolicy

from forkjoin_scheduler.policy.eviction import EvictionPolicy, FamilyFacts, LastCome
from forkjoin_scheduler.settings import own_eviction_policy
from forkjoin_scheduler.vllm_seam.admission_gate import AdmissionGate
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.view import SchedulerView


class Victims:
    """Chooses the family that gives way. Owns the policy."""

    def __init__(self, view: SchedulerView, gate: AdmissionGate) -> None:
        self._view, self._gate = view, gate
        own = view._settings.eviction_policy
        self._policy: EvictionPolicy = LastCome() if own is None else own_eviction_policy(own)()

    def choose(self, holding: Sequence[LiveFamily]) -> LiveFamily:
        """One of the families ``holding`` blocks. A policy that raises is asked no more."""
        by_key = {live.family.request_id: live for live in holding}
        facts = [self._facts(live) for live in holding]
        try:
            return by_key[self._policy.choose(facts)]
        except Exception as error:  # the policy may be anybody's
            self._view._contain("evict", error, None)
            self._policy = LastCome()
        return by_key[self._policy.choose(facts)]

    def _facts(self, live: LiveFamily) -> FamilyFacts:
        request = live.request
        by_priority = self._view.policy == SchedulingPolicy.PRIORITY
        return FamilyFacts(
            key=live.family.request_id,
            priority=request.priority if by_priority else 0,
            arrival=request.arrival_time,
            num_blocks=self._gate.holds(request)[0],
            written=live.family.num_generated,
        )
