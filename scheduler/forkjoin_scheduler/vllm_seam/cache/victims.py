"""Which family gives its blocks back, by the server's policy (``policy/eviction.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forkjoin_scheduler.excerpt import excerpt
from forkjoin_scheduler.policy.eviction import EvictionPolicy, FamilyFacts, LastCome
from forkjoin_scheduler.policy.own import WrongAnswer
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import Fence
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts.admission_gate import AdmissionGate


class Victims:
    """Chooses the family that gives way. Owns the policy."""

    def __init__(self, core: Core, fence: Fence, gate: AdmissionGate) -> None:
        self._core, self._fence, self._gate = core, fence, gate
        self._policy: EvictionPolicy = core.settings.policy("eviction_policy") or LastCome()

    def choose(self, holding: Sequence[LiveFamily]) -> LiveFamily:
        """One of the families ``holding`` blocks. A policy that raises, or names none, is asked no more."""
        by_key = {live.family.request_id: live for live in holding}
        facts = [self._facts(live) for live in holding]
        try:
            return by_key[_one_of(by_key, self._policy.choose([*facts]))]  # which it may change
        except (Exception, SystemExit) as error:  # the policy may be anybody's
            self._fence.blame("eviction_policy", "evict", error)
            self._policy = LastCome()
        return by_key[self._policy.choose(facts)]

    def _facts(self, live: LiveFamily) -> FamilyFacts:
        priority, arrival = self._core.turn(live.request)
        return FamilyFacts(
            key=live.family.request_id,
            priority=priority,
            arrival=arrival,
            num_blocks=self._gate.holds(live.request)[0],
            written=live.family.num_generated,
        )


def _one_of(families: Mapping[str, LiveFamily], key: str) -> str:
    """``key``, if it is one of those. Raises WrongAnswer if not."""
    if key not in families:
        raise WrongAnswer(f"expected the key of a family that holds blocks, got {excerpt(key)}")
    return key
