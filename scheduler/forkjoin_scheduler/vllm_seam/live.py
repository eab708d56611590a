"""A family in the engine: its tree, and what of it waits to leave for the front end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.request import Request

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.lookup import Lookup
from forkjoin_scheduler.machine.family import Branch, BranchState, Family
from forkjoin_scheduler.machine.pruner import Pruner
from forkjoin_scheduler.machine.thread_end import ThreadEnd
from forkjoin_scheduler.machine.transcript import Transcript
from forkjoin_scheduler.machine.vote import Vote
from forkjoin_scheduler.machine.waits import Waits
from forkjoin_scheduler.publish.events import (
    Drafted,
    Event,
    FamilyEnded,
    Forked,
    ForkLatency,
    JoinLatency,
    Progress,
)
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_scheduler.vllm_seam.front_end.outputs import Piece, to_outputs
from forkjoin_scheduler.vllm_seam.starts.wish import Wish

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.cache.job import Job

Counted = TypeVar("Counted", Progress, FamilyEnded)


def max_tokens_of(request: Request, wish: Wish) -> int:
    """The budget of a family: of the request and all its threads."""
    # Each thread of a vote is an answer with as many tokens as one.
    wanted = request.max_tokens * (wish.options.best_of or 1)
    cap = wish.limits.max_total_tokens
    return wanted if cap is None else min(wanted, cap)


@dataclass(eq=False)
class LiveFamily:
    """``request`` is the root's, ``wish`` what the client asked for with it."""

    family: Family
    request: Request
    wish: Wish
    transcripts: dict[Branch, Transcript[Piece]] = field(default_factory=dict)
    #: Blocks of threads that have ended, until their join.
    held: dict[Branch, kv.HeldBlocks] = field(default_factory=dict)
    #: KV that is computed beside the decoding.
    jobs: list[Job] = field(default_factory=list)
    #: Those of them that prefill ended threads behind one another, by the branch that waits for these.
    ahead: dict[Branch, Job] = field(default_factory=dict)
    #: Threads that have ended and whose last tokens a job gives their KV.
    closing: set[Branch] = field(default_factory=set)
    #: Threads by the number that their parent knows them by, where it asks for them one by one.
    numbered: dict[tuple[Branch, str], Branch] = field(default_factory=dict)
    #: What its branches have written, to draft from (``family_drafts.py``).
    lookup: Lookup | None = None
    #: Tokens that were drafted for it, and those of them that were right, by whose drafts they were.
    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    #: Newlines that the next text of a branch is to begin with, in the answer.
    newlines: dict[Branch, int] = field(default_factory=dict)
    #: Threads whose end the front end has been told.
    told: set[Branch] = field(default_factory=set)
    #: What its client knows of threads that wait; None if it does not want to.
    waits: Waits | None = field(init=False)
    #: How many threads it has been told of.
    num_announced: int = 0
    #: What its threads vote for, where the answer is that of most.
    vote: Vote | None = None
    #: Its threads that have not started, and start if the vote needs them, in outline order.
    later: list[Branch] = field(default_factory=list)
    #: Threads that its client has cancelled and that have not ended yet.
    cancelled: list[Branch] = field(default_factory=list)
    #: Stops those that are not worth going on with, if the request says so.
    pruner: Pruner | None = None
    #: Forks that were planned in this step and not made yet.
    num_planned: int = 0
    #: Tokens of the root's output of this step that leave as any request's: the family was not yet.
    num_led: int = 0
    #: Whether a thread was refused a token: the budget was spent by another in the same step.
    is_overdrawn: bool = False
    stop_reason: int | str | None = None
    #: The stop token of the request's own that a thread wrote: the last of the answer.
    stop_piece: Piece | None = None
    #: Set when the family ended by our decision: vLLM has not told the front end.
    finish_reason: FinishReason | None = None
    #: The root's own end, where its threads go on behind it, and the token that it stopped with.
    own_finish: FinishReason | None = None
    own_stop_piece: Piece | None = None
    events: list[Event] = field(default_factory=list)
    #: Whether its answer begins in this step, with or without a token: it has forked behind its prompt.
    begins: bool = False
    #: Whether its end is among these, or has left.
    has_told_end: bool = False
    #: Since when (``time.monotonic``) a branch has waited, after a fork for a thread's first token, after a
    #: join for its own, by the event that tells how long.
    clocks: dict[tuple[type[ForkLatency | JoinLatency], Branch | None], float] = field(default_factory=dict)
    #: How often each branch was started, or went on behind something that was put into its text.
    _num_starts: Counter[Branch] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.transcripts[self.family.root] = Transcript()
        is_streamed = self.wish.params.output_kind != RequestOutputKind.FINAL_ONLY
        self.waits = Waits() if self.family.include_threads and is_streamed else None

    @property
    def dialect(self) -> Dialect:
        """How the family forks and joins."""
        return self.wish.spoken.dialect

    @property
    def takes_over(self) -> bool:
        """Whether the root's own tokens go through the transcript, for threads run beside it."""
        return not self.dialect.join.waits

    def budget(self, branch: Branch, room: int) -> int:
        """Tokens that ``branch`` may still generate, ``room`` being left in its context."""
        own = [self.family.remaining, room]
        if branch is not self.family.root:
            limit = self.family.limits.max_tokens_per_thread
            own += [] if limit is None else [limit - branch.num_generated]
            own += [self.request.max_tokens] if self.wish.options.best_of else []
        return max(min(own), 1)

    def next_salt(self, branch: Branch) -> str:
        """What sets the noise of ``branch``'s next stretch of text apart from that of all others.

        The same whatever else runs: by its place in the tree, and how often it was started.
        """
        self._num_starts[branch] += 1
        return f"{branch.path}:{self._num_starts[branch]}"

    def parked(self) -> list[Branch]:
        """The branches that wait for their threads, the root first."""
        return [b for b in self.family.root.subtree() if b.state is BranchState.PARKED]

    def take_held(self, threads: Iterable[Branch]) -> list[kv.HeldBlocks]:
        """Hand on the blocks that are held of ``threads``: whoever takes them answers for them."""
        return [self.held.pop(thread) for thread in list(threads) if thread in self.held]

    def tell(self, event: Event) -> None:
        """Note ``event`` for the front end."""
        self.events.append(event)
        self.has_told_end |= isinstance(event, FamilyEnded)
        if isinstance(event, Forked):
            self.num_announced = len(self.family.threads)

    def clock_fork(self, branch: Branch) -> None:
        """The trigger of ``branch`` has been sampled."""
        self.clocks[ForkLatency, branch] = time.monotonic()

    def clock_join(self, branch: Branch) -> None:
        """The last thread of ``branch`` has ended."""
        self.clocks[JoinLatency, branch] = time.monotonic()

    def clock_token(self, branch: Branch) -> None:
        """``branch`` has generated: the first token after a fork or a join tells its latency."""
        for kind, waited in ((ForkLatency, branch.parent), (JoinLatency, branch)):
            if (start := self.clocks.pop((kind, waited), None)) is not None:
                self.tell(kind(seconds=time.monotonic() - start))

    def leaving(self, engine: int) -> tuple[list[EngineCoreOutput], list[EngineCoreOutput]]:
        """What the family sends from ``engine`` to the front end in this step: its events, and its tokens.

        The events are still noted then, for whoever sends them to forget.
        """
        family = self.family
        pieces = self.transcripts[family.root].release()
        last = self.stop_piece or self.own_stop_piece
        if self.finish_reason is FinishReason.STOP and last is not None:
            pieces.append(last)
        family.num_shown += len(pieces)
        for source in () if family.is_live else sorted(self.drafted):
            self.tell(Drafted(source=source, num=self.drafted[source], num_right=self.accepted[source]))
        # A stop string ends the request in the front end, which needs the counts of that very step.
        if self.events or self.wish.params.stop or not family.is_live:
            self.tell(self.counts(Progress) if family.is_live else self.counts(FamilyEnded))
        told = [wire.pack(family.request_id, self.events, engine)] if self.events else []
        # A limit may have ended the answer before what has stopped was its turn.
        stop_reason = self.stop_reason if self.finish_reason is FinishReason.STOP else None
        begins, self.begins = self.begins, False
        return told, to_outputs(self.request, pieces, self.finish_reason, stop_reason, begins=begins)

    def counts(self, kind: type[Counted]) -> Counted:
        """What the family has come to so far, for the front end."""
        family = self.family
        return kind(
            family=family.request_id,
            num_threads=sum(t.end is not ThreadEnd.NOT_STARTED for t in family.threads) - len(self.later),
            total_tokens=family.num_generated,
            critical_path_tokens=family.num_critical,
            surplus_tokens=family.num_shown - family.num_generated,
        )
