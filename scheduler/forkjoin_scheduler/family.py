"""A family: one request with all the threads it has forked, and the states they pass through.

::

            FORK              LAST_THREAD_ENDED           JOIN
  DECODING ──────▶ FORKED ───────────────────▶ JOINABLE ──────▶ DECODING
      └───────────────┴────────── END ────────────┴──────▶ ENDED

Invariants (pinned by tests): an illegal step raises and changes nothing; in FORKED at least one
thread is live, elsewhere none; thread indices are dense over the request, in order of forking.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.errors import IllegalTransition
from forkjoin_scheduler.fork import ForkPlan, ThreadPlan


class FamilyState(Enum):
    """Where a family stands."""

    DECODING = auto()
    FORKED = auto()
    JOINABLE = auto()
    ENDED = auto()


class Step(Enum):
    """What can happen to a family."""

    FORK = auto()
    LAST_THREAD_ENDED = auto()
    JOIN = auto()
    END = auto()


TRANSITIONS: dict[tuple[FamilyState, Step], FamilyState] = {
    (FamilyState.DECODING, Step.FORK): FamilyState.FORKED,
    (FamilyState.FORKED, Step.LAST_THREAD_ENDED): FamilyState.JOINABLE,
    (FamilyState.JOINABLE, Step.JOIN): FamilyState.DECODING,
    (FamilyState.DECODING, Step.END): FamilyState.ENDED,
    (FamilyState.FORKED, Step.END): FamilyState.ENDED,
    (FamilyState.JOINABLE, Step.END): FamilyState.ENDED,
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


@dataclass
class Thread:
    """One thread: ``token_ids`` is what it generated, end tag included, header not."""

    index: int
    position: int
    plan: ThreadPlan
    token_ids: list[int] = field(default_factory=list)
    end: ThreadEnd | None = None

    @property
    def is_live(self) -> bool:
        """Whether it still decodes, or waits to."""
        return self.end is None


@dataclass
class Family:
    """A request and its threads. Mutated only by its methods; owned by the scheduler."""

    request_id: str
    limits: Limits
    include_threads: bool = False
    state: FamilyState = FamilyState.DECODING
    #: All threads of all forks, by index.
    threads: list[Thread] = field(default_factory=list)
    #: The threads of the fork that is open or ended last, in outline order.
    current: list[Thread] = field(default_factory=list)
    num_forks: int = 0
    #: Tokens that the model generated, threads included; injected text is not counted.
    num_generated: int = 0
    num_injected: int = 0
    #: Of these, those on the longest path: the parent's own and the longest thread of each fork.
    num_critical: int = 0

    def thread_id(self, thread: Thread) -> str:
        """The engine's request id of ``thread``."""
        return f"{self.request_id}#{thread.index}"

    def fork(self, plan: ForkPlan) -> list[Thread]:
        """Start the threads of ``plan``. Raises IllegalTransition unless DECODING."""
        self._go(Step.FORK)
        first = len(self.threads)
        self.current = [Thread(first + i, i, p) for i, p in enumerate(plan.threads)]
        self.threads += self.current
        self.num_forks += 1
        return self.current

    def parent_generated(self, count: int) -> None:
        """The parent itself generated ``count`` tokens."""
        self.num_generated += count
        self.num_critical += count

    def thread_generated(self, thread: Thread, token_ids: list[int]) -> None:
        """``thread`` generated ``token_ids``. Raises IllegalTransition if it has ended."""
        if not thread.is_live or self.state is not FamilyState.FORKED:
            raise IllegalTransition(f"{self.thread_id(thread)} has ended, but generated tokens")
        thread.token_ids += token_ids
        self.num_generated += len(token_ids)

    def end_thread(self, thread: Thread, end: ThreadEnd) -> None:
        """``thread`` ended. Raises IllegalTransition if it had before."""
        if not thread.is_live or self.state is not FamilyState.FORKED:
            raise IllegalTransition(f"{self.thread_id(thread)} ended twice ({thread.end}, {end})")
        thread.end = end
        if not any(t.is_live for t in self.current):
            self._go(Step.LAST_THREAD_ENDED)
            self.num_critical += max(len(t.token_ids) for t in self.current)

    def join(self) -> None:
        """The parent goes on. Raises IllegalTransition unless every thread has ended."""
        self._go(Step.JOIN)

    def finish(self) -> list[Thread]:
        """The request ended, in whatever way; returns the threads that this cancelled."""
        self._go(Step.END)
        live = [t for t in self.current if t.is_live]
        for thread in live:
            thread.end = ThreadEnd.CANCELLED
        if live:
            self.num_critical += max(len(t.token_ids) for t in self.current)
        return live

    def check_integrity(self) -> None:
        """Raise IllegalTransition if an invariant of this module is broken."""
        live = [t for t in self.threads if t.is_live]
        if bool(live) != (self.state is FamilyState.FORKED):
            raise IllegalTransition(f"{self.request_id}: {len(live)} live threads in {self.state}")
        if [t.index for t in self.threads] != list(range(len(self.threads))):
            raise IllegalTransition(f"{self.request_id}: thread indices are not dense")

    def _go(self, step: Step) -> None:
        after = TRANSITIONS.get((self.state, step))
        if after is None:
            raise IllegalTransition(f"{self.request_id}: {step.name} in state {self.state.name}")
        self.state = after
