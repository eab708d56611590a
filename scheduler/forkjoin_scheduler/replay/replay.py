"""Reads a transcript as the engine would have written it: forks, injected texts, ends of threads, joins.

A transcript is the linear text that stock clients see: each thread's joined header and text stand where its
parent forked, in outline order. What the model wrote is taken from it and reported to the dialect's machine;
what the engine would inject is compared with what stands there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forkjoin_scheduler.dialects.bound import WINDOW_TOKENS, BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect, ForkAt
from forkjoin_scheduler.errors import DialectError
from forkjoin_scheduler.families.family import Branch, BranchState, Family
from forkjoin_scheduler.families.fork import Refusal
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.joins.joined import closing_ids_of
from forkjoin_scheduler.machine import advancing, forking, planning, writing
from forkjoin_scheduler.machine.forking import Fork
from forkjoin_scheduler.machine.machine import Machine, Terms
from forkjoin_scheduler.replay.characters import Characters
from forkjoin_scheduler.replay.world import TextWorld
from forkjoin_scheduler.request.options import CompiledOptions

#: How far after a text that differs the next known one is sought, in characters.
_RESYNC = 200


@dataclass(frozen=True)
class Found:
    """Something in a transcript: ``offset`` in characters, ``line`` from 1, and what it is, in a sentence."""

    kind: Literal["fork", "refused", "end", "join", "differs"]
    offset: int
    line: int
    text: str


def is_shown(dialect: Dialect) -> bool:
    """Whether a transcript shows where ``dialect`` forks, and all threads before it goes on."""
    return dialect.fork_at is ForkAt.TRIGGER and dialect.join.waits and dialect.join.shows_threads


def replay(dialect: Dialect, transcript: str) -> list[Found]:
    """What the engine would have done where. Raises DialectError for a dialect whose forks no text shows."""
    if not is_shown(dialect):
        raise DialectError(
            f"dialect {dialect.name!r}: expected one that forks at a trigger, and whose answer shows all "
            f"threads before it goes on; got fork_at {dialect.fork_at.value} and joins of kind "
            f"{dialect.join.kind}, of which no transcript says where threads begin and end"
        )
    return _Replay(dialect, transcript).run()


class _Replay:
    def __init__(self, dialect: Dialect, transcript: str) -> None:
        tokenizer = Characters(dialect.control_tokens)
        self._bound_dialect = BoundDialect.bind(dialect, tokenizer)
        self._tokenizer = tokenizer
        self._ids = tokenizer.encode(transcript)
        self._at = 0
        self._found: list[Found] = []
        self._transcript = transcript
        self._world = TextWorld(tokenizer)
        family = Family("transcript", dialect.limits)
        self._machine = Machine(
            family, Terms(CompiledOptions(), self._bound_dialect, family.max_tokens), self._world
        )
        self._since = {family.root: 0}
        self._world.contexts[family.root] = []

    def run(self) -> list[Found]:
        root = self._machine.family.root
        while self._at < len(self._ids) and not self._world.has_ended:
            self._write(root)
        return self._found

    def _note(self, kind: Literal["fork", "refused", "end", "join", "differs"], text: str) -> None:
        offset = len(self._tokenizer.decode(self._ids[: self._at]))
        line = self._transcript.count("\n", 0, offset) + 1
        self._found.append(Found(kind, offset, line, text))

    def _write(self, branch: Branch) -> bool:
        """``branch`` writes the next token; returns whether it has ended with it."""
        token_id = self._ids[self._at]
        self._at += 1
        context = self._world.contexts[branch]
        context.append(token_id)
        end = None
        if branch.plan is None:
            self._machine.family.generated(branch, [token_id])
        else:
            window = [*branch.token_ids[-WINDOW_TOKENS:], token_id]
            is_end = token_id in self._bound_dialect.end_ids(branch.plan) or self._bound_dialect.ends(
                branch.plan, window
            )
            end = ThreadEnd.STOP if is_end else None
            wrote = writing.thread_wrote(self._machine, branch, [token_id], end)
            if wrote is not None:
                self._world.perform(self._machine, wrote)
        if token_id == self._bound_dialect.summary_end_id and self._machine.end_summary(branch) is not None:
            self._note("end", "the answer has had its turns, and ends")
            self._world.has_ended = True
        wrote_since = context[max(self._since[branch], len(context) - WINDOW_TOKENS) :]
        if end is None and self._bound_dialect.triggers(wrote_since):
            self._fork(branch)
        return end is not None or branch.end is not None

    def _fork(self, branch: Branch) -> None:
        context, since = self._world.contexts[branch], self._since[branch]
        self._since[branch] = len(context)
        plan = planning.plan(self._machine, branch, context, since)
        if isinstance(plan, Refusal):
            self._note("refused", f"no fork: {plan.reason}; the policy is {plan.policy.value}")
            self._world.perform(self._machine, forking.refuse(self._machine, branch, plan))
            return
        titles = ", ".join(
            f"{t.number} {t.title!r}" if t.title not in ("", t.number) else t.number for t in plan.threads
        )
        more = f"; {plan.num_duplicates} repeated outlines dropped" if plan.num_duplicates else ""
        self._note("fork", f"{len(plan.threads)} threads: {titles}{more}")
        fork = Fork(plan, len(context), since)
        self._world.perform(self._machine, forking.fork(self._machine, branch, fork))
        while branch.state is BranchState.PARKED and not self._world.has_ended:
            self._stage(branch)

    def _stage(self, branch: Branch) -> None:
        """Read what the threads wrote that ``branch`` waits for, up to what follows their join."""
        num_later = len(branch.planned)
        for thread in branch.waits_for:
            self._thread(thread)
        self._world.perform(self._machine, advancing.advance(self._machine))
        if not self._world.has_ended:
            self._since[branch] = len(self._world.contexts[branch])
            closing = self._world.closing.pop(branch, ())
            self._inject(list(closing), "after the last thread")
            goes_on = "the next stage starts" if num_later else "the parent goes on"
            self._note("join", f"all threads have ended: {goes_on}")

    def _thread(self, thread: Branch) -> None:
        """Read what ``thread`` wrote, up to its end tag."""
        assert thread.plan is not None
        number = thread.plan.number
        self._since[thread] = len(self._world.contexts[thread])
        self._inject(list(thread.plan.joined_header_ids), f"before thread {number}")
        while self._at < len(self._ids) and not self._world.has_ended:
            if self._write(thread):
                closing = closing_ids_of(self._bound_dialect.dialect, thread, self._tokenizer)
                self._inject(closing, f"after thread {number}")
                may_not = thread.end is ThreadEnd.REFUSED
                how = "ends where it may not fork" if may_not else "has its end tag"
                self._note("end", f"thread {number} {how}")
                return
        if not self._world.has_ended:
            end = self._bound_dialect.dialect.policies.thread_eos.value
            self._note("differs", f"thread {number} has no end tag; the policy thread_eos is {end}")
            wrote = writing.thread_wrote(self._machine, thread, [0], ThreadEnd.EOS)
            self._world.perform(self._machine, wrote or iter(()))

    def _inject(self, expected: list[int], where: str) -> None:
        """Compare what the engine would inject with what stands here, and go on after that."""
        here = self._ids[self._at : self._at + len(expected)]
        if here == expected:
            self._at += len(expected)
            return
        wanted, seen = self._tokenizer.decode(expected), self._tokenizer.decode(here)
        self._note("differs", f"{where}: the engine writes {wanted!r}, the transcript has {seen!r}")
        core = self._tokenizer.encode(wanted.strip())
        for ahead in range(_RESYNC if core else 0):
            if self._ids[self._at + ahead : self._at + ahead + len(core)] == core:
                self._at += ahead + len(core)
                return
