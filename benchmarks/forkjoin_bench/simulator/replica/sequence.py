"""Sequences of the simulated engine, and the families that they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from forkjoin_bench.simulator.workload import Body, Request
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.machine.machine import Machine


class State(Enum):
    """What a sequence does."""

    WAITING = auto()
    PREFILLING = auto()
    DECODING = auto()
    PARKED = auto()
    ENDED = auto()


class Role(Enum):
    """What a sequence is. The last two only compute KV: ahead of a join, or of a thread's last tokens."""

    ROOT = auto()
    THREAD = auto()
    AHEAD = auto()
    CLOSE = auto()


class Cause(Enum):
    """Why tokens are prefilled."""

    PROMPT = "prompt"
    HEADER = "header"
    JOIN = "join"
    AHEAD = "ahead"
    CLOSE = "close"
    RECOMPUTED = "recomputed"


@dataclass
class Kv:
    """Blocks, and the names of the full ones; ``computed``: tokens whose KV they hold.

    Names say what is written, not where: they outlive the blocks, so that these can be found again.
    """

    blocks: list[int] = field(default_factory=list)
    names: list[int] = field(default_factory=list)
    num_named: int = 0
    computed: int = 0


@dataclass(eq=False, slots=True)
class Sequence:
    """One row of a step. ``tokens``: its context; while it decodes, as it was in step ``since``."""

    family: Family
    body: Body
    tokens: int
    role: Role = Role.ROOT
    parent: Sequence | None = None
    #: Its place among its siblings.
    sibling_index: int = 0
    cause: Cause = Cause.PROMPT
    state: State = State.WAITING
    #: What it is to its family's machine; a fill is nothing to it.
    branch: Branch = field(default_factory=lambda: Branch(""))
    kv: Kv = field(default_factory=Kv)
    #: Tokens of its context that are its parent's.
    fork_len: int = 0
    #: Parts of ``body`` that are done, and tokens to be sampled in the one that is not.
    part: int = 0
    left: int = 0
    written: int = 0
    since: int = 0
    #: Steps in which it takes its next block, and samples the last token of its part.
    grows_at: int = 0
    part_ends_at: int = 0
    #: Its turn among those that run.
    rank: int = 0
    was_preempted: bool = False
    #: When it, or what it goes on from, sampled last; None before the first token.
    last_at: float | None = None
    #: Of a parked one: its threads, KV of ended ones by position, and what prefills them ahead.
    threads: list[Sequence] = field(default_factory=list)
    held: dict[int, Kv] = field(default_factory=dict)
    fill: Sequence | None = None
    #: Whether its KV is stitched: no prefix of it can be found or computed in a row.
    is_stitched: bool = False

    def __post_init__(self) -> None:
        self.left = self.written_part()

    def tokens_at(self, step: int) -> int:
        """Its context after ``step``."""
        return self.tokens + (step - self.since if self.state is State.DECODING else 0)

    def written_at(self, step: int) -> int:
        """What it has written after ``step``."""
        return self.written + (step - self.since if self.state is State.DECODING else 0)

    def unbooked_at(self, step: int) -> int:
        """What of that its machine has not been told yet."""
        return self.written_at(step) - self.branch.num_generated

    def written_part(self) -> int:
        """Tokens of the part that it writes."""
        part = self.body[self.part]
        assert isinstance(part, int)
        return part

    @property
    def is_fill(self) -> bool:
        """Whether it only computes KV."""
        return self.role in (Role.AHEAD, Role.CLOSE)


@dataclass(eq=False)
class Family:
    """A request and what became of it. What has been written is known without asking who decodes."""

    request: Request
    number: int
    root: Sequence = field(init=False)
    #: The step that it was admitted in, if it may fork.
    admitted_at: int = 0
    first_token_at: float | None = None
    ended_at: float | None = None
    #: Tokens written, but for those that the decoding ones have written since they began.
    done: int = 0
    num_decoding: int = 0
    sum_since: int = 0
    num_preempted: int = 0
    #: From its first fork on.
    machine: Machine | None = None
    #: Its branches that have not ended.
    sequences: dict[Branch, Sequence] = field(default_factory=dict)

    @property
    def widest(self) -> int:
        """Threads of its widest fork so far."""
        return 0 if self.machine is None else self.machine.family.widest

    def generated(self, step: int) -> int:
        """Tokens written after ``step``."""
        return self.done + self.num_decoding * step - self.sum_since

    def critical(self, step: int) -> int:
        """Tokens of its critical path so far."""
        if self.machine is None:
            return self.root.written_at(step)
        live = (s.branch.num_critical + s.unbooked_at(step) for s in self.sequences.values())
        return max(self.machine.family.num_critical, *live)
