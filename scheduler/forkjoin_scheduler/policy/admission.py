"""Whether a request may start: when what it is expected to need fits beside what already runs.

A family grows long after it has started: its threads, then the context that they are joined to.
Admitted greedily, families take each other's blocks and run in steps that are nearly empty. So a
request waits until it will fit; what runs is finished rather than more started.

Not all reach their widest at once, and what ends gives its blocks back. So the future is looked
at: each request is expected to grow evenly up to its end and to free what it holds there. Most is
in use right before one of these ends; where that is no more than there is, the request fits. (The
idea is that of the Past-Future scheduler, arXiv 2507.10150, for requests that are one sequence.)

Before any request has ended, what it will need is a guess. If the guess is too low, too many families
start, and what the youngest have computed is lost. So each is expected to take a twelfth of the cache,
until threads have ended that wrote little.

Expectations can be wrong, and then a family loses blocks. It is admitted again before it takes them
again (``readmission``): otherwise it would take them from the next one, which would take them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Protocol, runtime_checkable


@dataclass
class Expectation:
    """A mean that forgets; ``prior`` until something was seen."""

    prior: float
    weight: float = 0.1
    num_seen: int = 0
    mean: float = field(init=False)

    def __post_init__(self) -> None:
        self.mean = self.prior

    def see(self, value: float) -> None:
        """One more value; the first ones count evenly, without the prior."""
        self.num_seen += 1
        self.mean += max(self.weight, 1 / self.num_seen) * (value - self.mean)


@dataclass(frozen=True)
class Need:
    """What a request has used so far: tokens generated, the widest fork, tokens of its critical path.

    ``blocks``: KV blocks that return to the pool when it ends, which nobody else holds; of a new one,
    those that it takes when it starts. ``lost``: blocks that it has been robbed of, and will take again.
    ``ahead``: blocks that each sequence takes beyond its own tokens, for drafts of those to come.
    ``max_tokens``: what it may generate at most. ``asked``: threads that the request itself asks for
    (0: the model decides), ``abreast``: how many of them start at once, if not all. ``ended_threads``: how
    many of its threads have ended. ``given``: those of the tokens that are of an earlier answer.
    """

    generated: int = 0
    width: int = 0
    critical: int = 0
    blocks: int = 0
    max_tokens: int = 1 << 30
    lost: float = 0
    asked: int = 0
    abreast: int = 0
    ahead: float = 0.0
    ended_threads: int = 0
    given: int = 0


@dataclass(frozen=True)
class Room:
    """What is free: KV blocks, with ``tokens_per_block`` tokens each, and slots of a step."""

    num_free: int
    tokens_per_block: int
    num_slots: int


@dataclass(frozen=True, order=True)
class Future:
    """Steps until a request ends, blocks that it takes until then, and those that it already has."""

    steps: float
    growth: float
    held: float


@runtime_checkable
class AdmissionPolicy(Protocol):
    """Decides whether a request starts. Only requests that may fork are asked for, and counted."""

    def admits(self, new: Need, running: Sequence[Need], room: Room) -> bool:
        """Whether a request that needs ``new`` starts beside the ``running`` ones; there is at least one."""
        ...

    def learn(self, need: Need) -> None:
        """A request has ended by itself; it used ``need``."""


class Admission:
    """Learns what requests need, and says whether one more fits."""

    #: What is expected of a request before any has ended: this part of the KV cache, but no less than small
    #: families write, and no more than those of published models do.
    PRIOR_PART, PRIOR_TOKENS, MOST_PRIOR_TOKENS = 1 / 12, 512, 8192
    PRIOR_WIDTH = 4
    #: A family writes about as much as so many threads: those of its first fork, and what stands around them.
    PRIOR_THREADS = 6
    #: How much the prior counts beside a thread that has ended.
    PRIOR_WEIGHT = 1 / 4
    #: Of each thread that a request itself asks for.
    PRIOR_THREAD_TOKENS = 256
    #: A model that forks less often than this is served as vLLM would.
    RARELY = 0.05
    #: Of what is expected in all, one that has come further is still expected to write this much.
    LAST_PART = 1 / 8
    #: Room for so much of what all are expected to take is enough: they take most of it late.
    ENOUGH = 0.8

    def __init__(self) -> None:
        self.tokens = Expectation(self.PRIOR_TOKENS)
        #: Tokens that a request was expected to write when one was last asked for.
        self.expected = self.tokens.mean
        self.thread_tokens = Expectation(self.PRIOR_THREAD_TOKENS)
        self.width = Expectation(self.PRIOR_WIDTH)
        self.parallelism = Expectation(2.0)
        # The prior counts as one that was seen: the first to end are the shortest, which often did not fork.
        self.forks = Expectation(1.0, num_seen=1)

    def is_due(self, new: Need) -> bool:
        """Whether what ``new`` will need matters: it asks for threads, or requests fork often enough."""
        return new.asked > 0 or self.forks.mean > self.RARELY

    def learn(self, need: Need) -> None:
        """A request has ended by itself. What it asked for says nothing about the model's forks."""
        if need.asked:
            self.thread_tokens.see(need.generated / need.asked)
            return
        self.tokens.see(need.generated)
        self.expected = self.tokens.mean
        self.width.see(need.width)
        self.parallelism.see(max(need.generated / max(need.critical, 1), 1.0))
        self.forks.see(need.width > 0)

    def admits(self, new: Need, running: Sequence[Need], room: Room) -> bool:
        """Whether a request that needs ``new`` may start beside the ``running`` ones.

        One that runs alone always may.
        """
        if not running or not self.is_due(new):
            return True
        needs = (*running, new)
        # Where many want slots, a wide fork is given a share of them.
        if sum(min(self._width(need), max(room.num_slots / 2, 1)) for need in needs) > room.num_slots:
            return False
        self.expected = self.expected_tokens(running, room)
        futures = [self.future(need, room.tokens_per_block) for need in needs]
        return most_in_use(futures) <= room.num_free - new.blocks

    def expected_tokens(self, running: Sequence[Need], room: Room) -> float:
        """Tokens that a request will write, the ``running`` ones too.

        The first to end are the shortest. So until many have ended, half of what the others have written
        counts for each end. That raises the mean up to what was expected before any had ended, at most.
        """
        mean, num_ended = self.tokens.mean, self.tokens.num_seen
        prior = self._prior(running, room)
        if not num_ended:
            return prior
        written = sum(need.generated for need in _telling(running))
        return max(mean, min(mean + written / (2 * num_ended), prior))

    def _prior(self, running: Sequence[Need], room: Room) -> float:
        """What is expected before any has ended: less, where the threads that have ended were short."""
        num_blocks = room.num_free + sum(need.blocks for need in running)
        most = min(self.PRIOR_PART * num_blocks * room.tokens_per_block, self.MOST_PRIOR_TOKENS)
        own = _telling(running)
        written = self.PRIOR_WEIGHT * most / self.PRIOR_THREADS + sum(need.generated for need in own)
        of_each = written / (self.PRIOR_WEIGHT + sum(need.ended_threads for need in own))
        return max(min(most, self.PRIOR_THREADS * of_each), self.PRIOR_TOKENS)

    def future(self, need: Need, tokens_per_block: int) -> Future:
        """What is expected of a request; before its fork, that each thread leaves a block partly empty."""
        expected = self.thread_tokens.mean * need.asked if need.asked else self.expected
        tokens = max(min(expected, need.max_tokens), 1.0)
        steps = tokens / self._width(need)
        left = max(tokens - need.generated, tokens * self.LAST_PART)
        to_fork = 0.0 if need.width else need.abreast or need.asked or self.width.mean
        return Future(
            steps=max(steps - need.critical, steps * self.LAST_PART),
            growth=self.ENOUGH * (left / tokens_per_block + to_fork * (1 + need.ahead)) + need.lost,
            held=need.blocks,
        )

    def _width(self, need: Need) -> float:
        """How many sequences a request is in a step, on average."""
        return need.abreast or need.asked or self.parallelism.mean


def readmission(need: Need, room: Room) -> tuple[Need, Room]:
    """What to ask of a policy for a family that has lost blocks, as if it were new: its need, and the room.

    It takes the lost blocks when it starts. Those that it still holds are its own: they count as free.
    """
    num_lost = ceil(need.lost)
    new = replace(need, blocks=need.blocks + num_lost, lost=0)
    return new, replace(room, num_free=room.num_free + need.blocks)


def _telling(running: Sequence[Need]) -> list[Need]:
    """Those that tell what the model writes: it chose their threads, and began with none of their tokens."""
    return [need for need in running if not need.asked and not need.given]


def most_in_use(futures: Sequence[Future]) -> float:
    """Blocks beyond those in use now that will be in use at once, at most.

    That is so right before one of them ends: until then all that have not ended grow, each evenly.
    """
    growing = sum(f.growth / f.steps for f in futures)
    freed = most = 0.0
    for future in sorted(futures):
        most = max(most, growing * future.steps - freed)
        growing -= future.growth / future.steps
        freed += future.held
    return most
