"""A family: one request with all the threads it has forked, and the states they pass through.

A family is a tree of branches: the root is the request, every other branch a thread. Each goes
through the same states::

            PARK              LAST_THREAD_ENDED           JOIN
  DECODING ──────▶ PARKED ───────────────────▶ JOINABLE ──────▶ DECODING
      └───────────────┴────────── END ────────────┴──────▶ ENDED

A branch that does not wait for its threads (spliced, on demand) forks without being parked. Each
transition to JOINABLE makes one entry in ``Family.take_joinable``, and nothing else does.

Invariants (pinned by tests): an illegal step raises and changes nothing; a branch is PARKED
exactly while a thread that it waits for has not ended; thread indices are dense over the family,
in order of forking; every generated token is charged to the family's one budget, which is never exceeded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from forkjoin_scheduler.errors import IllegalTransition
from forkjoin_scheduler.families.thread_end import ThreadEnd

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.limits import Limits
    from forkjoin_scheduler.families.fork import ForkPlan, ThreadPlan


class BranchState(Enum):
    """Where a branch stands."""

    DECODING = auto()
    PARKED = auto()
    JOINABLE = auto()
    ENDED = auto()


#: Asked of each token: looked up in the enum it takes as long as a call.
_DECODING = BranchState.DECODING


class Transition(Enum):
    """What can happen to a branch."""

    PARK = auto()
    LAST_THREAD_ENDED = auto()
    JOIN = auto()
    END = auto()


TRANSITIONS: dict[tuple[BranchState, Transition], BranchState] = {
    (BranchState.DECODING, Transition.PARK): BranchState.PARKED,
    (BranchState.PARKED, Transition.LAST_THREAD_ENDED): BranchState.JOINABLE,
    (BranchState.JOINABLE, Transition.JOIN): BranchState.DECODING,
    (BranchState.DECODING, Transition.END): BranchState.ENDED,
    (BranchState.PARKED, Transition.END): BranchState.ENDED,
    (BranchState.JOINABLE, Transition.END): BranchState.ENDED,
}


@dataclass(eq=False, repr=False)
class Branch:
    """The request itself, or one of its threads.

    ``token_ids``: what stands after its header in its own context: what it generated and, where
    it forked, the joined threads. Empty for the root, whose tokens vLLM keeps.
    """

    request_id: str
    parent: Branch | None = None
    plan: ThreadPlan | None = None
    #: Dense over the family; -1 for the root.
    index: int = -1
    #: Place among its siblings, in outline order.
    sibling_index: int = 0
    #: How many forks its parent had made before the one that started it.
    fork_number: int = 0
    #: Tokens of its parent's context at the fork; fewer, where the parent has cut some of them off since.
    fork_len: int = 0
    state: BranchState = BranchState.DECODING
    end: ThreadEnd | None = None
    token_ids: list[int] = field(default_factory=list)
    #: The threads of each fork, in outline order; of a fork in stages, those of each stage.
    forks: list[list[Branch]] = field(default_factory=list)
    #: The stages of its open fork that have not started: each does when that before it has been joined.
    planned: list[list[Branch]] = field(default_factory=list)
    #: How many of them were joined: one that ends inside a fork, or with it, leaves that open.
    num_joined: int = 0
    #: Tokens of its context up to the end of its last stitched join; 0: it has none.
    stitched_len: int = 0
    #: The threads that it stands still for, or did last.
    waits_for: list[Branch] = field(default_factory=list)
    #: Tokens that the model generated in this branch itself; injected text is not counted.
    num_generated: int = 0
    #: Tokens on the longest path that leads to its last one.
    num_critical: int = 0
    #: The position of its next token less that token's place in its context (stitched joins).
    offset: int = 0
    #: The same, when it started.
    start_offset: int = 0

    def __repr__(self) -> str:
        return f"<Branch {self.request_id} {self.state.name}>"

    @property
    def is_live(self) -> bool:
        """Whether it still decodes, or waits to."""
        return self.state is not BranchState.ENDED

    @property
    def threads(self) -> list[Branch]:
        """The threads of the fork that is open or ended last."""
        return self.forks[-1] if self.forks else []

    @property
    def is_last(self) -> bool:
        """Whether it is the last of those that are joined with it."""
        return self.parent is None or self.parent.forks[self.fork_number][-1] is self

    @property
    def joined_forks(self) -> list[list[Branch]]:
        """The forks that it has gone on after, in order."""
        return self.forks[: self.num_joined]

    @property
    def path(self) -> str:
        """Its place in the tree, whatever else the family has started meanwhile."""
        if self.parent is None:
            return ""
        return f"{self.parent.path}/{self.fork_number}.{self.sibling_index}"

    @property
    def depth(self) -> int:
        """How many forks lie between it and the request: 0 for the root."""
        return 0 if self.parent is None else self.parent.depth + 1

    def subtree(self) -> Iterator[Branch]:
        """This branch and all beneath it, each before its threads."""
        yield self
        for fork in (*self.forks, *self.planned):
            for thread in fork:
                yield from thread.subtree()

    def take_back(self, num_tokens: int, instead: Sequence[int]) -> None:
        """Its last ``num_tokens`` tokens give way to others; they stay counted, for they were generated."""
        if self.parent is not None:
            self.token_ids[max(len(self.token_ids) - num_tokens, 0) :] = instead

    def cut_context(self, num_tokens: int) -> None:
        """Its context is cut off after ``num_tokens`` tokens: its threads share no more with it."""
        for thread in (t for fork in self.forks for t in fork):
            thread.fork_len = min(thread.fork_len, num_tokens)

    def go(self, transition: Transition) -> None:
        """Take ``transition``. Raises IllegalTransition, and changes nothing, where the table has none."""
        after = TRANSITIONS.get((self.state, transition))
        if after is None:
            raise IllegalTransition(f"{self.request_id}: {transition.name} in state {self.state.name}")
        self.state = after


class Family:
    """A request and its threads. Mutated only by its methods; owned by the scheduler."""

    def __init__(
        self,
        request_id: str,
        limits: Limits,
        *,
        max_tokens: int = sys.maxsize,
        include_threads: bool = False,
    ) -> None:
        self.request_id = request_id
        self.limits = limits
        #: The budget: tokens that the model may generate in all branches together.
        self.max_tokens = max_tokens
        self.include_threads = include_threads
        self.root = Branch(request_id)
        #: All threads of all forks, by index.
        self.threads: list[Branch] = []
        self.num_forks = 0
        #: Threads of the widest fork.
        self.widest = 0
        #: Branches that have not ended.
        self.num_live = 1
        #: Tokens that the model generated, threads included; injected text is not counted.
        self.num_generated = 0
        #: Tokens that have left as the answer, injected text included.
        self.num_shown = 0
        #: Branches that have become JOINABLE, until they are taken.
        self._joinable: list[Branch] = []

    @property
    def remaining(self) -> int:
        """Tokens that the family may still generate."""
        return self.max_tokens - self.num_generated

    @property
    def is_live(self) -> bool:
        """Whether any branch has not ended."""
        return self.num_live > 0

    @property
    def has_live_threads(self) -> bool:
        """Whether a thread has not ended."""
        return self.num_live > self.root.is_live

    @property
    def num_ended_threads(self) -> int:
        """Threads that have ended."""
        return len(self.threads) - (self.num_live - self.root.is_live)

    @property
    def num_critical(self) -> int:
        """Tokens on the longest path: what the answer would take with all threads side by side."""
        return max(b.num_critical for b in (self.root, *self.threads))

    def fork(
        self,
        branch: Branch,
        plan: ForkPlan,
        context_len: int = 0,
        *,
        waits: bool = True,
        offset: int = 0,
        num_behind: int = 0,
    ) -> list[Branch]:
        """Start the threads of ``plan`` in ``branch``, ``context_len`` tokens into its context; returns them.

        Of a plan in stages the first is started.

        ``offset``: their positions less their slots. ``num_behind``: tokens that the branch, which does not
        wait, has generated after the fork in the same step.
        Raises IllegalTransition unless it decodes.
        """
        if waits:
            branch.go(Transition.PARK)
        elif branch.state is not BranchState.DECODING:
            raise _not_decoding(branch, "forked")
        first = len(self.threads)
        threads = [
            Branch(f"{self.request_id}#{first + i}", branch, p, first + i) for i, p in enumerate(plan.threads)
        ]
        self.threads += threads
        self.num_live += len(threads)
        self.num_forks += 1
        at, branch.planned = 0, []
        for num in plan.stages or (len(threads),):
            branch.planned.append(threads[at : at + num])
            at += num
        return self._begin(branch, context_len, waits, offset, num_behind)

    def next_stage(self, branch: Branch, context_len: int, *, offset: int = 0) -> list[Branch]:
        """Start the next threads that are planned in ``branch``, as ``fork`` does.

        Raises IllegalTransition unless it decodes.
        """
        branch.go(Transition.PARK)
        return self._begin(branch, context_len, True, offset, 0)

    def leave_out(self, thread: Branch) -> None:
        """``thread``, which is planned, will not start; it is to end by itself."""
        assert thread.parent is not None
        stages = [[t for t in stage if t is not thread] for stage in thread.parent.planned]
        thread.parent.planned = [stage for stage in stages if stage]

    def _begin(
        self, branch: Branch, context_len: int, waits: bool, offset: int, num_behind: int
    ) -> list[Branch]:
        """Let the first stage that is planned in ``branch`` begin."""
        threads = branch.planned.pop(0)
        for i, thread in enumerate(threads):
            thread.sibling_index, thread.fork_number = i, len(branch.forks)
            thread.fork_len = context_len
            thread.num_critical = branch.num_critical - num_behind
            thread.offset = thread.start_offset = offset
        branch.forks.append(threads)
        if waits:
            branch.waits_for = threads
        self.widest = max(self.widest, len(threads))
        return threads

    def wait(self, branch: Branch, threads: Sequence[Branch]) -> None:
        """Let ``branch`` stand still until ``threads`` have ended.

        Raises IllegalTransition unless it decodes.
        """
        branch.go(Transition.PARK)
        branch.waits_for = list(threads)
        self._check_waiting(branch)

    def generated(self, branch: Branch, token_ids: list[int]) -> None:
        """``branch`` generated ``token_ids``. Raises IllegalTransition unless it decodes."""
        if branch.state is not _DECODING:
            raise _not_decoding(branch, "generated tokens")
        if branch is not self.root:
            branch.token_ids += token_ids
        num = len(token_ids)
        branch.num_generated += num
        branch.num_critical += num
        self.num_generated += num

    def join(self, branch: Branch, token_ids: list[int]) -> None:
        """``branch`` goes on behind its threads, ``token_ids`` joined in.

        Raises IllegalTransition unless every thread that it waited for has ended.
        """
        branch.go(Transition.JOIN)
        branch.num_joined = len(branch.forks)
        branch.num_critical = max([branch.num_critical, *(t.num_critical for t in branch.waits_for)])
        if branch is not self.root:
            branch.token_ids += token_ids

    def end(self, branch: Branch, end: ThreadEnd, *, cancels: bool = True) -> list[Branch]:
        """``branch`` ended, in whatever way; returns the live threads beneath that this cancelled.

        Without ``cancels``, those go on by themselves. Raises IllegalTransition if it had ended
        before.
        """
        branch.go(Transition.END)
        branch.end = end
        self.num_live -= 1
        branch.waits_for = branch.waits_for if cancels else []
        cancelled = [b for b in branch.subtree() if b.is_live] if cancels else []
        for thread in cancelled:
            thread.go(Transition.END)
            thread.end = ThreadEnd.CANCELLED
        self.num_live -= len(cancelled)
        for thread in (branch, *cancelled):
            if thread.parent is not None:
                self._check_waiting(thread.parent)
        return cancelled

    def take_joinable(self) -> Branch | None:
        """The branch that became JOINABLE last and still is, each once; None: there is none."""
        while self._joinable:
            if (branch := self._joinable.pop()).state is BranchState.JOINABLE:
                return branch
        return None

    def _check_waiting(self, branch: Branch) -> None:
        """Let ``branch`` become joinable if it waits for nothing any more."""
        if branch.state is BranchState.PARKED and not any(t.is_live for t in branch.waits_for):
            branch.go(Transition.LAST_THREAD_ENDED)
            self._joinable.append(branch)

    def check_integrity(self) -> None:
        """Raise IllegalTransition if an invariant of this module is broken."""
        for branch in self.root.subtree():
            has_live = any(t.is_live for t in branch.waits_for)
            if has_live != (branch.state is BranchState.PARKED) and branch.is_live:
                raise IllegalTransition(f"{branch.request_id}: {branch.state} with live threads: {has_live}")
            if has_live and not branch.is_live:
                raise IllegalTransition(f"{branch.request_id}: ended before the threads it waits for")
        if self.num_live != sum(b.is_live for b in self.root.subtree()):
            raise IllegalTransition(f"{self.request_id}: {self.num_live} is not the number of live branches")
        if self.num_generated != sum(b.num_generated for b in self.root.subtree()):
            raise IllegalTransition(f"{self.request_id}: its branches did not generate {self.num_generated}")
        if self.remaining < 0:
            raise IllegalTransition(
                f"{self.request_id}: {self.num_generated} tokens on a budget of {self.max_tokens}"
            )
        if [t.index for t in self.threads] != list(range(len(self.threads))):
            raise IllegalTransition(f"{self.request_id}: thread indices are not dense")


def _not_decoding(branch: Branch, what: str) -> IllegalTransition:
    return IllegalTransition(f"{branch.request_id}: {what} in state {branch.state.name}")
