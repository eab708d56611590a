"""A family: one request with all the threads it has forked, and the states they pass through.

A family is a tree of branches: the root is the request, every other branch a thread. Each goes
through the same states::

            FORK              LAST_THREAD_ENDED           JOIN
  DECODING ──────▶ FORKED ───────────────────▶ JOINABLE ──────▶ DECODING
      └───────────────┴────────── END ────────────┴──────▶ ENDED

Invariants (pinned by tests): an illegal step raises and changes nothing; a branch is FORKED
exactly while one of its threads has not ended; thread indices are dense over the family, in order
of forking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.errors import IllegalTransition
from forkjoin_scheduler.fork import ForkPlan, ThreadPlan


class BranchState(Enum):
    """Where a branch stands."""

    DECODING = auto()
    FORKED = auto()
    JOINABLE = auto()
    ENDED = auto()


class Step(Enum):
    """What can happen to a branch."""

    FORK = auto()
    LAST_THREAD_ENDED = auto()
    JOIN = auto()
    END = auto()


TRANSITIONS: dict[tuple[BranchState, Step], BranchState] = {
    (BranchState.DECODING, Step.FORK): BranchState.FORKED,
    (BranchState.FORKED, Step.LAST_THREAD_ENDED): BranchState.JOINABLE,
    (BranchState.JOINABLE, Step.JOIN): BranchState.DECODING,
    (BranchState.DECODING, Step.END): BranchState.ENDED,
    (BranchState.FORKED, Step.END): BranchState.ENDED,
    (BranchState.JOINABLE, Step.END): BranchState.ENDED,
}


class ThreadEnd(str, Enum):
    """Why a thread ended."""

    #: It wrote its end tag.
    STOP = "stop"
    #: It wrote the end-of-sequence token instead.
    EOS = "eos"
    #: It ran into a limit on tokens or the context length.
    LENGTH = "length"
    #: It wrote one of the request's own stop tokens: the answer ends here.
    REQUEST_STOP = "request_stop"
    #: Its request ended, or an earlier sibling ended the answer.
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Branch:
    """The request itself, or one of its threads.

    ``token_ids``: what stands behind its header in its own context: what it generated and, where
    it forked, the joined threads. Empty for the root, whose tokens vLLM keeps.
    """

    request_id: str
    parent: Branch | None = None
    plan: ThreadPlan | None = None
    #: Dense over the family; -1 for the root.
    index: int = -1
    #: Place among its siblings, in outline order.
    position: int = 0
    state: BranchState = BranchState.DECODING
    end: ThreadEnd | None = None
    token_ids: list[int] = field(default_factory=list)
    #: The threads of each fork, in outline order.
    forks: list[list[Branch]] = field(default_factory=list)
    #: Tokens that the model generated in this branch itself; injected text is not counted.
    num_generated: int = 0

    @property
    def is_live(self) -> bool:
        """Whether it still decodes, or waits to."""
        return self.state is not BranchState.ENDED

    @property
    def threads(self) -> list[Branch]:
        """The threads of the fork that is open or ended last."""
        return self.forks[-1] if self.forks else []

    @property
    def depth(self) -> int:
        """How many forks lie between it and the request: 0 for the root."""
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def num_critical(self) -> int:
        """Tokens on its longest path: its own and, of each fork, the longest thread's."""
        return self.num_generated + sum(max(t.num_critical for t in fork) for fork in self.forks)

    def subtree(self) -> Iterator[Branch]:
        """This branch and all beneath it."""
        yield self
        for fork in self.forks:
            for thread in fork:
                yield from thread.subtree()

    def go(self, step: Step) -> None:
        """Take ``step``. Raises IllegalTransition, and changes nothing, where the table has none."""
        after = TRANSITIONS.get((self.state, step))
        if after is None:
            raise IllegalTransition(f"{self.request_id}: {step.name} in state {self.state.name}")
        self.state = after


class Family:
    """A request and its threads. Mutated only by its methods; owned by the scheduler."""

    def __init__(self, request_id: str, limits: Limits, *, include_threads: bool = False) -> None:
        self.request_id = request_id
        self.limits = limits
        self.include_threads = include_threads
        self.root = Branch(request_id)
        #: All threads of all forks, by index.
        self.threads: list[Branch] = []
        self.num_forks = 0
        #: Tokens that the model generated, threads included; injected text is not counted.
        self.num_generated = 0
        #: Tokens released to the transcript that are not the root's own.
        self.num_released = 0

    @property
    def is_live(self) -> bool:
        """Whether the request has not ended."""
        return self.root.is_live

    @property
    def has_forked(self) -> bool:
        """Whether a fork is open."""
        return self.root.state in (BranchState.FORKED, BranchState.JOINABLE)

    @property
    def num_surplus(self) -> int:
        """Tokens of the transcript so far less those generated: the injected less the held back."""
        return self.root.num_generated + self.num_released - self.num_generated

    def fork(self, branch: Branch, plan: ForkPlan) -> list[Branch]:
        """Start the threads of ``plan`` in ``branch``. Raises IllegalTransition unless DECODING."""
        branch.go(Step.FORK)
        first = len(self.threads)
        threads = [
            Branch(f"{self.request_id}#{first + i}", branch, p, first + i, i)
            for i, p in enumerate(plan.threads)
        ]
        branch.forks.append(threads)
        self.threads += threads
        self.num_forks += 1
        return threads

    def generated(self, branch: Branch, token_ids: list[int]) -> None:
        """``branch`` generated ``token_ids``. Raises IllegalTransition unless it decodes."""
        if branch.state is not BranchState.DECODING:
            raise IllegalTransition(f"{branch.request_id}: generated tokens in state {branch.state.name}")
        if branch is not self.root:
            branch.token_ids += token_ids
        branch.num_generated += len(token_ids)
        self.num_generated += len(token_ids)

    def join(self, branch: Branch, token_ids: list[int]) -> None:
        """``branch`` goes on behind its threads, ``token_ids`` joined in.

        Raises IllegalTransition unless every thread has ended.
        """
        branch.go(Step.JOIN)
        if branch is not self.root:
            branch.token_ids += token_ids

    def end(self, branch: Branch, end: ThreadEnd) -> list[Branch]:
        """``branch`` ended, in whatever way; returns the live threads beneath that this cancelled.

        Raises IllegalTransition if it had ended before.
        """
        branch.go(Step.END)
        branch.end = end
        cancelled = [b for b in branch.subtree() if b.is_live]
        for thread in cancelled:
            thread.go(Step.END)
            thread.end = ThreadEnd.CANCELLED
        parent = branch.parent
        if parent is not None and not any(t.is_live for t in parent.threads):
            parent.go(Step.LAST_THREAD_ENDED)
        return cancelled

    def check_integrity(self) -> None:
        """Raise IllegalTransition if an invariant of this module is broken."""
        for branch in self.root.subtree():
            has_live = any(t.is_live for t in branch.threads)
            if has_live != (branch.state is BranchState.FORKED):
                raise IllegalTransition(f"{branch.request_id}: {branch.state} with live threads: {has_live}")
        if [t.index for t in self.threads] != list(range(len(self.threads))):
            raise IllegalTransition(f"{self.request_id}: thread indices are not dense")
