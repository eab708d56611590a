"""Whether a request may start: when what it is expected to need fits beside what already runs.

A family grows long after it has started: its threads, then the context that they are joined to.
Admitted greedily, families take each other's blocks and run in steps that are nearly empty. So a
request waits until the blocks and slots that it will need are free, counting those that the
running ones will still take; what runs is finished rather than more started.

Not all of them come to their widest at once, so only a part of what they will take need be kept
free: the ``reserve``. It is all of it at first, for those that start together are at their widest
together. It shrinks when requests end by themselves while others were kept waiting, and grows when
somebody had to give blocks back. Where nobody waits nothing is learnt of how little would do: it
goes back to what it was at first, or a quiet time would let too much of the next burst in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


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
    """What a request has come to: tokens generated, the widest fork, tokens of its critical path."""

    generated: int
    width: int = 0
    critical: int = 0


@dataclass(frozen=True)
class Room:
    """What is free: KV blocks, with ``tokens_per_block`` tokens each, and slots of a step."""

    num_free: int
    tokens_per_block: int
    num_slots: int


class Admission:
    """Learns what requests need, and says whether one more fits."""

    #: What is expected of a request before any has ended.
    PRIOR_TOKENS, PRIOR_WIDTH = 512, 4
    #: A model that forks less often than this is served as vLLM would.
    RARELY = 0.05
    #: Of what is expected in all, one that has come further is still expected to write this much.
    LAST_PART = 1 / 8
    #: The part of what is expected that is kept free: at first, at least and at most.
    RESERVE, LEAST_RESERVE, MOST_RESERVE = 1.0, 0.1, 1.0
    #: What it is multiplied by when a request has lost its blocks, and when one has ended by itself
    #: while others waited; the part of the way that it goes back when none did.
    MORE, LESS, BACK = 1.2, 0.9, 0.1

    def __init__(self) -> None:
        self.tokens = Expectation(self.PRIOR_TOKENS)
        self.width = Expectation(self.PRIOR_WIDTH)
        self.parallelism = Expectation(2.0)
        self.forks = Expectation(1.0)
        self.reserve = self.RESERVE
        #: Whether a request was kept waiting since the last one ended.
        self._has_refused = False

    @property
    def is_due(self) -> bool:
        """Whether requests fork often enough for what they will need to matter."""
        return self.forks.mean > self.RARELY

    def learn(self, need: Need) -> None:
        """A request has ended by itself."""
        self.tokens.see(need.generated)
        self.width.see(need.width)
        self.parallelism.see(max(need.generated / max(need.critical, 1), 1.0))
        self.forks.see(need.width > 0)
        if self._has_refused:
            self.reserve = max(self.reserve * self.LESS, self.LEAST_RESERVE)
        else:
            self.reserve += self.BACK * (self.RESERVE - self.reserve)
        self._has_refused = False

    def ran_short(self) -> None:
        """A request has had to give its blocks back, for there were none left."""
        self.reserve = min(self.reserve * self.MORE, self.MOST_RESERVE)

    def admits(self, prompt_blocks: int, max_tokens: int, running: Iterable[Need], room: Room) -> bool:
        """Whether a request of ``prompt_blocks`` new blocks may start beside the ``running`` ones.

        One that runs alone always may.
        """
        is_admitted = self._has_room(prompt_blocks, max_tokens, running, room)
        self._has_refused |= not is_admitted
        return is_admitted

    def _has_room(self, prompt_blocks: int, max_tokens: int, running: Iterable[Need], room: Room) -> bool:
        blocks = room.num_free - prompt_blocks - self._growth(Need(0), max_tokens, room.tokens_per_block)
        slots = room.num_slots - self.parallelism.mean
        for need in running:
            blocks -= self._growth(need, None, room.tokens_per_block)
            slots -= self.parallelism.mean
            if blocks < 0 or slots < 0:
                return False
        return True

    def _growth(self, need: Need, max_tokens: int | None, tokens_per_block: int) -> float:
        """Blocks that a request will still take; each thread leaves one partly empty."""
        tokens = self.tokens.mean if max_tokens is None else min(self.tokens.mean, max_tokens)
        left = max(tokens - need.generated, tokens * self.LAST_PART)
        to_fork = 0.0 if need.width else self.width.mean
        return self.reserve * (left / tokens_per_block + to_fork)
