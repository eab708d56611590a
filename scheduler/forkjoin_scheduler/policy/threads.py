"""Which threads run in a step.

All of them (``Eager``), some of each family (``Capped``), or as many as the others can bear
(``Slack``, in the spirit of TAPER, arXiv 2605.06914).

Every thread slows the step that all share. A policy may let threads wait for a slot, or sit out
steps; what it never does is let a family stand still that has a slot. ``Slack`` prefers the thread
that is furthest behind: on that one the join will wait longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from forkjoin_scheduler.policy.fair_share import fair_shares
from forkjoin_scheduler.policy.step_cost import NOTHING, Load, StepCost


@dataclass(frozen=True)
class ThreadFacts:
    """A thread that could run in the next step."""

    key: str
    family: str
    #: Tokens it has generated.
    written: int = 0
    #: Tokens of KV that its step reads.
    context: int = 0
    #: Whether it has a slot already.
    has_slot: bool = False
    #: Tokens that its step computes: the one that comes next, and drafts of those after it.
    computes: int = 1
    #: Its family's turn where not all can run: the lowest is first.
    turn: tuple[float, ...] = ()


@dataclass(frozen=True)
class StepFacts:
    """What is known before a step. ``others``: what all but these threads will compute in it.

    ``threads``: not those that have lost their blocks, where their family waits to be admitted again.

    ``slack``: seconds until the first stream is late; None: no stream is protected. A family is one while it
    writes in one branch: in a fork it makes steps long itself, and its threads don't gain by sitting out.
    ``tokens_a_step``: what a sequence gets in a step on average: more than one where drafts are right.
    ``num_others_waiting``: requests that wait for a slot and could start.
    """

    threads: Sequence[ThreadFacts]
    others: Load = NOTHING
    slack: float | None = None
    num_slots: int = 1 << 30
    num_others_waiting: int = 0
    tokens_a_step: float = 1.0


@runtime_checkable
class ThreadPolicy(Protocol):
    """Decides which threads run."""

    def choose(self, facts: StepFacts) -> set[str]:
        """The keys of the threads that run in the next step."""
        ...


class Eager:
    """All of them."""

    def choose(self, facts: StepFacts) -> set[str]:
        """All, as far as the slots are shared fairly."""
        return _started_fairly(facts)


def within(caps: Mapping[str, int], threads: Sequence[ThreadFacts], chosen: set[str]) -> set[str]:
    """Of the ``chosen`` threads those that ``caps`` let run, by family: those that have a slot come first."""
    kept: set[str] = set()
    left = dict(caps)
    for thread in sorted((t for t in threads if t.key in chosen), key=lambda t: not t.has_slot):
        if thread.family in left:
            left[thread.family] -= 1
        if left.get(thread.family, 0) >= 0:
            kept.add(thread.key)
    return kept


@dataclass(frozen=True)
class Capped:
    """At most ``per_family`` of a family at a time, each to its end: the others hold no KV so long."""

    per_family: int

    def choose(self, facts: StepFacts) -> set[str]:
        """Those of each family that have a slot, then others in their order, up to the cap."""
        families = {thread.family for thread in facts.threads}
        return within(dict.fromkeys(families, self.per_family), facts.threads, _started_fairly(facts))


#: Of the promised seconds a token, what ``Slack`` aims at: a stream at the very edge misses half of the time.
AIM = 0.95


@dataclass(frozen=True)
class Slack:
    """As many as the predicted step leaves every stream in time; ``target``: seconds a token, aimed at.

    What the first stream is ahead of its time, or behind it, is spent or regained over ``spread`` steps: one
    long step, which prefills a prompt, holds no thread back where steps are short enough on average.
    """

    cost: StepCost
    target: float
    spread: int = 16

    def allowed(self, facts: StepFacts) -> float:
        """Seconds that the next step may take. There has to be a ``slack``."""
        assert facts.slack is not None
        return self.target * facts.tokens_a_step + (facts.slack - self.target) / self.spread

    def choose(self, facts: StepFacts) -> set[str]:
        """One of each family, then more up to what the step may take: the first family's, then the next's.

        One family after the other, for those served whole are done sooner, and the last no later.

        All, as long as nothing is known, and where even the first ones would take longer than the
        target: what can't be kept is not worth the waiting.
        """
        fair = _started_fairly(facts)
        if facts.slack is None or not self.cost.is_ready:
            return fair
        pairs = ranked(t for t in facts.threads if t.key in fair)
        chosen, load = set(), facts.others
        for thread in (t for rank, t in pairs if rank == 0):
            load = load.plus(thread.context, thread.computes)
            chosen.add(thread.key)
        if self.cost.predict(load) > self.target * facts.tokens_a_step:
            return fair
        allowed = self.allowed(facts)
        more = [t for rank, t in pairs if rank > 0]
        for thread in sorted(more, key=lambda t: t.turn):
            load = load.plus(thread.context, thread.computes)
            if self.cost.predict(load) > allowed:
                break
            chosen.add(thread.key)
        return chosen


def ranked(threads: Iterable[ThreadFacts]) -> list[tuple[int, ThreadFacts]]:
    """``threads`` with their ranks in their families: the furthest behind is first, of rank 0.

    In order of rank; of one rank, the furthest behind come first. One that has a slot goes before
    one that would need it.
    """
    by_family: dict[str, list[ThreadFacts]] = {}
    for thread in threads:
        by_family.setdefault(thread.family, []).append(thread)
    pairs = []
    for own in by_family.values():
        pairs += list(enumerate(sorted(own, key=_behind)))
    return sorted(pairs, key=lambda pair: (pair[0], _behind(pair[1])))


def _behind(thread: ThreadFacts) -> tuple[int, bool]:
    return thread.written, not thread.has_slot


def _started_fairly(facts: StepFacts) -> set[str]:
    """Those that have a slot, and those that may take one: a wide fork takes no more than its share.

    As long as there are slots for all that want one, all may.
    """
    # More that want one slot each than there are slots change no share.
    num_single = min(facts.others.num_sequences + facts.num_others_waiting, facts.num_slots)
    if len(facts.threads) + num_single <= facts.num_slots:
        return {t.key for t in facts.threads}
    demands: dict[object, int] = {}
    for thread in facts.threads:
        demands[thread.family] = demands.get(thread.family, 0) + 1
    shares = fair_shares(demands | dict.fromkeys(range(num_single), 1), facts.num_slots)
    left = {family: shares[family] for family in demands}
    chosen = set()
    for thread in sorted(facts.threads, key=lambda t: not t.has_slot):
        if thread.has_slot or left[thread.family] > 0:
            chosen.add(thread.key)
            left[thread.family] -= 1
    return chosen
