"""The values that the labels of our metrics can have, known before anything happens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.errors import EnginePlace, FrontEndPlace, Limit, OwnPolicy
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.policy.leases import KeepRefusal, LeaseEnd, LeaseState
from forkjoin_scheduler.request.explicit import POLICIES
from forkjoin_scheduler.settings import DraftSource

THREAD_ENDS: tuple[str, ...] = tuple(end.value for end in ThreadEnd)
OUTCOMES = ("decided", "undecided")
DRAFT_SOURCES: tuple[str, ...] = get_args(DraftSource)
LIMITS: tuple[str, ...] = get_args(Limit)
ENGINE_PLACES: tuple[str, ...] = get_args(EnginePlace)
OWN_POLICIES: tuple[str, ...] = get_args(OwnPolicy)
FRONT_END_PLACES: tuple[str, ...] = get_args(FrontEndPlace)
#: What became of a request to keep an answer, how leases end, and what requests find that go on from one.
KEPT: tuple[str, ...] = ("kept", *get_args(KeepRefusal))
LEASE_ENDS: tuple[str, ...] = get_args(LeaseEnd)
LEASE_STATES: tuple[str, ...] = get_args(LeaseState)
#: A tag that the model wrote where the dialect has another text for it.
STRAY_TAG = ("stray_tag", "swap")


def malformed(dialect: Dialect) -> Iterable[tuple[str, str]]:
    """What can be malformed in forks, by ``dialect`` or as a request defines them, and what is done then."""
    found = {(kind, policy.value) for policies in (dialect.policies, POLICIES) for kind, policy in policies}
    # the request itself, where a thread would be closed for a fork that is refused
    closing = [kind for kind, policy in dialect.policies if policy is Policy.CLOSE_THREAD]
    found |= {(kind, Policy.END_REQUEST.value) for kind in closing if not kind.startswith("thread_")}
    if dialect.join.asks_by_number:
        # a thread whose number an earlier fork has given
        found.add(("duplicate_outline", Policy.SEQUENTIAL.value))
    if dialect.swaps:
        found.add(STRAY_TAG)
    return sorted(found)
