"""Which answers' KV blocks are kept for the requests that go on from them, and which lease ends first.

It decides only: blocks are numbers here, and times are of one clock. ``vllm_seam/kept/leasing.py`` holds the
blocks and lets them go.

Invariants (pinned by tests): all leases together hold at most ``max_blocks`` blocks, each counted once; a
lease ends once, and says for a while why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Literal

#: Why an answer is not kept: its key has kept too much, all keys have, or no block of it can be found again.
KeepRefusal = Literal["budget", "share", "not_cached"]
#: Why a lease ended: its time was over, its client let go of it, running requests needed the blocks, or the
#: prefix cache was reset.
LeaseEnd = Literal["expired", "released", "pressure", "reset"]
#: What a request that goes on from an answer finds of its lease.
LeaseState = Literal["kept", LeaseEnd]

#: Of so many leases that have ended it is known why.
MAX_ENDED = 1000
#: Leases of one key, and of all: those of short answers behind one prompt hold hardly a block of their own.
MAX_OWN, MAX_LEASES = 256, 1024


@dataclass(eq=False)
class Lease:
    """The KV of one answer, kept for ``tenant`` until ``expires_at``."""

    name: str
    tenant: str
    blocks: frozenset[int]
    num_tokens: int
    expires_at: float
    used_at: float
    #: The id of the request that it was. (No ``request_id``: a lease is of no family, and outlives it.)
    answer_id: str = ""
    #: Requests that went on from it.
    num_continued: int = 0


class Leases:
    """Owns which leases there are, and why the last ones ended."""

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self._leases: dict[str, Lease] = {}
        self._ended: dict[str, tuple[str, LeaseEnd]] = {}
        #: How many leases hold each block.
        self.holders: Counter[int] = Counter()
        #: When the next lease ends.
        self.next_end: float = float("inf")

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    @property
    def num_blocks(self) -> int:
        """Blocks that leases hold, each counted once."""
        return len(self.holders)

    def refusal(self, tenant: str, blocks: Set[int], max_own: float) -> KeepRefusal | None:
        """Why ``tenant``, which may keep ``max_own`` blocks, may not keep these; None if it may."""
        if not blocks:
            return "not_cached"
        own = [lease.blocks for lease in self._leases.values() if lease.tenant == tenant]
        if len(own) >= MAX_OWN or len(frozenset(blocks).union(*own)) > max_own:
            return "budget"
        if len(self) >= MAX_LEASES:
            return "share"
        num_new = sum(block not in self.holders for block in blocks)
        return "share" if self.num_blocks + num_new > self.max_blocks else None

    def add(self, lease: Lease) -> None:
        """Keep ``lease``, of which ``refusal`` said nothing."""
        assert lease.name not in self._leases
        self._leases[lease.name] = lease
        self._ended.pop(lease.name, None)
        self.holders.update(lease.blocks)
        self.next_end = min(self.next_end, lease.expires_at)

    def find(self, name: str, tenant: str) -> Lease | None:
        """The lease of that name, if it is ``tenant``'s."""
        lease = self._leases.get(name)
        return lease if lease is not None and lease.tenant == tenant else None

    def state(self, name: str, tenant: str) -> LeaseState | None:
        """What ``tenant`` finds of its lease; None if it has, or had, none of that name."""
        if self.find(name, tenant) is not None:
            return "kept"
        whose, why = self._ended.get(name, (None, None))
        return why if whose == tenant else None

    def use(self, lease: Lease, now: float) -> None:
        """A request goes on from ``lease``: others give way before it."""
        lease.used_at = now
        lease.num_continued += 1

    def end(self, lease: Lease, why: LeaseEnd) -> None:
        """``lease`` holds its blocks no more."""
        del self._leases[lease.name]
        for block in lease.blocks:
            self.holders[block] -= 1
            if not self.holders[block]:
                del self.holders[block]
        if lease.expires_at <= self.next_end:
            self.next_end = min((other.expires_at for other in self), default=float("inf"))
        self._ended[lease.name] = lease.tenant, why
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def expired(self, now: float) -> list[Lease]:
        """Those whose time is over."""
        return [lease for lease in self if lease.expires_at <= now] if self.next_end <= now else []

    def victim(self, num_holders: Callable[[int], int]) -> Lease | None:
        """Which lease gives way: the one that was used longest ago, of those whose end helps.

        ``num_holders``: how many hold a block, leases and requests together. A lease all of whose blocks
        requests hold gives no room.
        """
        helping = (lease for lease in self if any(num_holders(b) == self.holders[b] for b in lease.blocks))
        return min(helping, key=lambda lease: (lease.used_at, lease.expires_at), default=None)
