"""A machine: what becomes of one family. Its caller reports what happened, it says what to do.

It knows neither vLLM nor torch. What happens to it comes as calls of the functions beside it, by subject:

* ``planning``: what a call in its text does, and ``ahead``: what may be prefilled (these only say);
* ``writing``: a branch wrote tokens;
* ``forking``: a branch forks, is refused to, or wrote what the dialect swaps;
* ``asking``: it asks for what a thread returns;
* ``ending``: a thread ended, or its KV is all there;
* ``advancing``: a step has ended; what is due is done (``cancelling``, ``voting``, ``cutting``, ``joining``).

They answer with effects (``effects.py``). The table of transitions (``families/family.py``) is the only truth
of who may do what.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TypeVar

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.families.family import Branch, BranchState, Family
from forkjoin_scheduler.families.fork import Refusal
from forkjoin_scheduler.families.pruner import Pruner
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.transcript import Transcript
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.families.waits import Waits
from forkjoin_scheduler.machine.output_token import OutputToken
from forkjoin_scheduler.machine.world import World
from forkjoin_scheduler.publish.events import (
    Event,
    FamilyEnded,
    Forked,
    ForkLatency,
    JoinLatency,
    Progress,
)
from forkjoin_scheduler.publish.recording import Recording
from forkjoin_scheduler.request.given import Stretch
from forkjoin_scheduler.request.options import CompiledOptions

Counted = TypeVar("Counted", Progress, FamilyEnded)


@dataclass(frozen=True)
class Terms:
    """What a request that may fork asked for, and how. Of its own parameters only what machines decide by.

    ``max_tokens``: of one answer. ``wants_logprobs``: whether its client wants those of its tokens.
    ``is_streamed``: whether its client hears of it as it goes on. ``prompt_len``: tokens of its prompt.
    """

    options: CompiledOptions
    bound_dialect: BoundDialect
    max_tokens: int
    wants_logprobs: bool = False
    is_streamed: bool = True
    prompt_len: int = 0


@dataclass(eq=False)
class Machine:
    """The state of one family: its tree, and what of it waits to leave for the front end."""

    family: Family
    terms: Terms
    world: World
    transcripts: dict[Branch, Transcript[OutputToken]] = field(default_factory=dict)
    #: Threads by the number that their parent knows them by, where it asks for them one by one.
    numbered: dict[tuple[Branch, str], Branch] = field(default_factory=dict)
    #: Branches that write the summary after their join.
    summarising: set[Branch] = field(default_factory=set)
    #: Those that it has asked for.
    asked: set[Branch] = field(default_factory=set)
    #: Newlines that the next text of a branch is to begin with, in the answer.
    newlines: dict[Branch, int] = field(default_factory=dict)
    #: Threads whose end was emitted.
    emitted_ends: set[Branch] = field(default_factory=set)
    #: What its client knows of threads that wait; None if it does not want to.
    waits: Waits | None = field(init=False)
    #: How many threads were emitted.
    num_announced: int = 0
    #: Its prompt, where rounds of threads each make a new one of it.
    prompt: list[int] = field(default_factory=list)
    #: What its threads vote for, where the answer is that of most.
    vote: Vote | None = None
    #: Its threads that have not started, and start if the vote needs them, in outline order.
    later: list[Branch] = field(default_factory=list)
    #: Threads that its client has cancelled and that have not ended yet.
    cancelled: list[Branch] = field(default_factory=list)
    #: Stops those that are not worth going on with, if the request says so.
    pruner: Pruner | None = None
    #: Its tree, if the request wants that.
    recording: Recording | None = None
    #: Turns that the answer has had (``Dialect.max_turns``), up to the trigger or the join that came last.
    num_turns: int = 0
    #: Forks that were planned in this step and not made yet.
    num_planned: int = 0
    #: Whether a thread was refused a token: the budget was spent by another in the same step.
    is_overdrawn: bool = False
    stop_reason: int | str | None = None
    #: The stop token of the request's own that a thread wrote: the last of the answer.
    stop_piece: OutputToken | None = None
    #: How the answer ended, as clients see it (``stop``, ``length``): by our decision, and not by vLLM's.
    finish: str | None = None
    #: The root's own end, where its threads go on after it, and the token that it stopped with.
    own_finish: str | None = None
    own_stop_piece: OutputToken | None = None
    #: What its branches had written in an earlier answer and have not been given yet, by their paths.
    given: dict[str, deque[Stretch]] = field(default_factory=dict)
    #: Branches that have begun, or gone on after a join, and are to be given what they had written there.
    to_give: list[Branch] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    #: Whether its end is among these, or has left.
    has_emitted_end: bool = False
    #: Since when (``World.now``) a branch has waited, after a fork for a thread's first token, after a
    #: join for its own, by the event that says how long.
    clocks: dict[tuple[type[ForkLatency | JoinLatency], Branch | None], float] = field(default_factory=dict)
    #: How often each branch was started, or went on after something that was put into its text.
    _num_starts: Counter[Branch] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.transcripts[self.family.root] = Transcript()
        is_told = self.family.include_threads and self.terms.is_streamed
        self.waits = Waits() if is_told else None
        if self.terms.options.given is not None:
            stretches = self.terms.options.given.stretches
            self.given = {path: deque(of_branch) for path, of_branch in stretches.items()}

    @property
    def dialect(self) -> Dialect:
        """How the family forks and joins."""
        return self.terms.bound_dialect.dialect

    @property
    def buffers_parent_output(self) -> bool:
        """Whether the root's own tokens go through the transcript, for threads run beside it."""
        return not self.dialect.join.waits

    def has_no_turn(self, branch: Branch, num_more: int = 0) -> bool:
        """Whether ``branch``, the root, has no turn left after this one and ``num_more``."""
        limit = self.dialect.max_turns
        return limit is not None and branch is self.family.root and self.num_turns + num_more >= limit

    def end_summary(self, branch: Branch) -> Refusal | None:
        """``branch`` has written the end of its summary; returns why it does not go on, None if it does."""
        was_summary = branch in self.summarising
        self.summarising.discard(branch)
        if was_summary and self.has_no_turn(branch):
            return Refusal("too_many_turns", self.dialect.policies.too_many_turns)
        return None

    def room(self, branch: Branch, num_tokens: int, offset: int = 0) -> int:
        """Tokens that a context of ``num_tokens`` can still take, in KV slots and in positions.

        What closes a stitched thread must find room after them.
        """
        num_closing = 0
        if branch is not self.family.root:
            num_closing = self.dialect.join.num_closing_tokens(self.dialect, self.world.tokenizer)
        room = self.world.max_model_len - num_tokens - max(offset, 0) - num_closing
        return min(room, self._room_of_answer(branch, num_tokens, offset)) if self.dialect.reserve else room

    def _room_of_answer(self, branch: Branch, num_tokens: int, offset: int) -> int:
        """Tokens that max_tokens leaves a context of ``num_tokens``, less the dialect's reserve."""
        left = self.terms.max_tokens - self.dialect.reserve - (num_tokens - self.terms.prompt_len)
        width = next((len(f) for f in branch.parent.forks if branch in f), 1) if branch.parent else 1
        return min(left - offset, -(-left // width))

    def budget(self, branch: Branch, room: int) -> int:
        """Tokens that ``branch`` may still generate, ``room`` being left in its context."""
        own = [self.family.remaining, room]
        limit, is_thread = self.family.limits.max_tokens_per_thread, branch is not self.family.root
        if limit is not None and (is_thread or self.dialect.limits_parent):
            own.append(limit - branch.num_generated)
        own += [self.terms.max_tokens - branch.num_generated] if self.dialect.join.threads_are_answers else []
        return max(min(own), 1)

    def next_salt(self, branch: Branch) -> str:
        """What sets the noise of ``branch``'s next stretch of text apart from that of all others.

        The same whatever else runs: by its place in the tree, and how often it was started.
        """
        self._num_starts[branch] += 1
        return f"{branch.path}:{self._num_starts[branch]}"

    def take_given(self, branch: Branch) -> Stretch | None:
        """What ``branch``, which begins or goes on, had written there; None: nothing, or nobody knows."""
        stretches = self.given.get(branch.path)
        return stretches.popleft() if stretches else None

    def parked(self) -> list[Branch]:
        """The branches that wait for their threads, the root first."""
        return [b for b in self.family.root.subtree() if b.state is BranchState.PARKED]

    def emit(self, event: Event) -> None:
        """Note ``event`` for the front end."""
        self.events.append(event)
        self.has_emitted_end |= isinstance(event, FamilyEnded)
        if isinstance(event, Forked):
            self.num_announced = len(self.family.threads)

    def clock_fork(self, branch: Branch) -> None:
        """The trigger of ``branch`` has been sampled."""
        self.clocks[ForkLatency, branch] = self.world.now()

    def clock_join(self, branch: Branch) -> None:
        """The last thread of ``branch`` has ended."""
        self.clocks[JoinLatency, branch] = self.world.now()

    def clock_token(self, branch: Branch) -> None:
        """``branch`` has generated: the first token after a fork or a join ends its latency."""
        for kind, waited in ((ForkLatency, branch.parent), (JoinLatency, branch)):
            if (start := self.clocks.pop((kind, waited), None)) is not None:
                self.emit(kind(seconds=self.world.now() - start))

    def release(self) -> list[OutputToken]:
        """What of the answer may leave now; with its end also the token that it stopped with."""
        pieces = self.transcripts[self.family.root].release()
        last = self.stop_piece or self.own_stop_piece
        if self.finish == "stop" and last is not None:
            pieces.append(last)
        self.family.num_shown += len(pieces)
        return pieces

    def counts(self, kind: type[Counted]) -> Counted:
        """What the family has used so far, for the front end."""
        family = self.family
        return kind(
            family=family.request_id,
            num_threads=sum(t.end is not ThreadEnd.NOT_STARTED for t in family.threads) - len(self.later),
            total_tokens=family.num_generated,
            critical_path_tokens=family.num_critical,
            surplus_tokens=family.num_shown - family.num_generated,
        )
