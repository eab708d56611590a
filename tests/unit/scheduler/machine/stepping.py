"""What an engine does with the tokens of a step, in short: it hears what they call for, and tells the machine.

Tokens are booked one by one, up to the first that ends the branch, forks it or parks it. Then the machine is told
of them, branch by branch, and what was called for is done; at last it advances, and the answer leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect, ForkAt
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, BranchState, Family
from forkjoin_scheduler.families.fork import ForkPlan, Refusal
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.machine import advancing, asking, cancelling, forking, planning, writing
from forkjoin_scheduler.machine.effects import Effects
from forkjoin_scheduler.machine.forking import Fork
from forkjoin_scheduler.machine.machine import Machine, Terms
from forkjoin_scheduler.machine.output_token import OutputToken
from forkjoin_scheduler.publish.events import ROOT, Event
from forkjoin_scheduler.publish.recording import Recording
from forkjoin_scheduler.request.explicit import explicit_dialect
from forkjoin_scheduler.request.options import CompiledOptions
from tests.unit.conftest import ByteTokenizer
from tests.unit.scheduler.machine.playing import EOS, Stage, named

TURNS = ("<B>", "<U>", "<A>")
#: How threads and joins of a plain dialect are written.
THREAD = {"header": "<T>{n}:", "end": "</T>", "close": "</T>"}
JOIN = {"kind": "reprefill", "text": "<J>", "close_block": "</P>"}
#: What is still to be done with two threads of which the first has ended.
ENDED_FIRST = ["Keep t0", "PrefillFinishedThreads root"]


@dataclass(eq=False)
class Run:
    """What a branch wrote in a step, and how it ended."""

    branch: Branch
    token_ids: list[int] = field(default_factory=list)
    #: Tokens that were heard, an end of sequence among them that forks and was taken back.
    num_heard: int = 0
    end: ThreadEnd | None = None
    stop_reason: int | str | None = None
    forks: list[Fork] = field(default_factory=list)
    #: Tokens of the root that leave as any request's: it was no family yet.
    num_led: int = 0


class Play:
    """One request, from its prompt on."""

    def __init__(
        self,
        dialect: Dialect | None = None,
        *,
        prompt: str = "Q",
        max_tokens: int = 100,
        max_model_len: int = 1000,
        limits: Limits | None = None,
        stop: str = "",
        tags: Sequence[str] = (),
        is_late: bool = False,
        options: CompiledOptions | None = None,
    ) -> None:
        options = options or CompiledOptions(include_threads=True)
        if dialect is None:
            dialect = explicit_dialect(options, Limits())
        tags = [*dialect.control_tokens, *TURNS, *tags]
        limits = limits or dialect.limits
        self.tokenizer = ByteTokenizer([t for t in dict.fromkeys(tags) if not set(t) & set("{}")], TURNS)
        self.spoken = BoundDialect.bind(dialect, self.tokenizer)
        self.stage = Stage(self.tokenizer, max_model_len, is_late=is_late)
        budget = min(max_tokens * dialect.num_answers(limits), limits.max_total_tokens or 10**9)
        family = Family("r", limits, max_tokens=budget, include_threads=True)
        prompt_ids = self.tokenizer.encode(prompt)
        terms = Terms(options, self.spoken, max_tokens, prompt_len=len(prompt_ids))
        self.machine = Machine(family, terms, self.stage)
        self.stage.machine = self.machine
        self.machine.recording = Recording(prompt_ids, SimpleNamespace(seed=None, logprobs=None))
        self.root = family.root
        self.stage.contexts[self.root] = prompt_ids
        self.stage.since[self.root] = len(self.stage.contexts[self.root])
        self.stage.left[self.root] = min(max_tokens, limits.max_total_tokens or max_tokens)
        self.at_prompt = self.spoken.dialect.fork_at is ForkAt.PROMPT
        self.stop_ids = set(self.tokenizer.encode(stop))
        #: Whether it has called for anything yet.
        self.is_family = False
        self.calls: list[Effects] = []
        self.released: list[int] = []
        self.finish: str | None = None
        self._num_seen = 0

    # ---- what a test says and asks -------------------------------------------------------------

    def step(self, *, closes: bool = True, **wrote: str) -> None:
        """A step in which each branch wrote this, in this order: ``root="a", t0="b"``."""
        branches = named(self.machine, list(wrote))
        encoded = map(self.tokenizer.encode, wrote.values())
        self.run(zip(branches, encoded, strict=True), list(self.stage.closing) if closes else [])

    def done(self) -> list[str]:
        """What was performed since this was asked last."""
        done, self.stage.log[:] = list(self.stage.log), []
        return done

    def told(self, kind: type[Event]) -> list[Event]:
        """The events of this kind."""
        return [e for e in self.machine.events if isinstance(e, kind)]

    def cancel(self, index: int) -> str:
        """The client cancels a thread."""
        return cancelling.ask(self.machine, index)

    @property
    def answer(self) -> str:
        """What has left, as text."""
        return self.tokenizer.decode(self.released)

    def text(self, branch: Branch) -> str:
        """The context of ``branch``."""
        return self.tokenizer.decode(self.stage.context(branch))

    # ---- a step --------------------------------------------------------------------------------

    def run(
        self, wrote: Iterable[tuple[Branch, list[int]]], closes: Iterable[Branch] = ()
    ) -> list[tuple[Branch, int]]:
        """A step; returns how many tokens of each branch were heard.

        ``closes``: threads whose last KV comes in it.
        """
        runs = [self._hear(branch, token_ids) for branch, token_ids in wrote]
        for run in runs:
            self._take(run)
        for thread in closes:
            if thread in self.stage.closing:
                self.stage.close(thread)
        self.stage.forking.clear()
        calls, self.calls = self.calls, []
        for call in calls:
            self.stage.perform(call)
        has_ended = self.root not in self.stage.contexts
        if self.is_family:
            self.stage.perform(advancing.advance(self.machine, root_has_ended=has_ended))
            self.machine.num_planned = 0
        elif has_ended:
            self.machine.family.end(self.root, ThreadEnd.STOP)
        self.released += [piece.token_id for piece in self.machine.release()]
        self.finish = self.machine.finish or self.finish
        assert self.machine.family.num_shown == len(self.released)
        self.stage.check()
        if self.machine.family.is_live:
            assert self.finish is None
        else:
            assert self.finish is not None
            self.stage.check_ended()
        return [(run.branch, run.num_heard) for run in runs]

    def _hear(self, branch: Branch, token_ids: list[int]) -> Run:
        run, stage = Run(branch), self.stage
        assert branch in stage.contexts, f"{branch} does not run"
        assert branch not in stage.standing, f"{branch} stands still"
        if self.at_prompt and branch is self.root:
            self.at_prompt, self.is_family = False, True
            self.calls.append(self._fork(branch, None))
            return run
        if branch in stage.to_fork:
            stage.to_fork.remove(branch)
            again = forking.next_stage(self.machine, branch) if branch.planned else self._fork(branch, None)
            self.calls.append(again)
            return run
        for token_id in token_ids:
            stage.contexts[branch].append(token_id)
            stage.left[branch] -= 1
            run.token_ids.append(token_id)
            run.num_heard += 1
            goes_on = self._detect_triggers(run, token_id)
            if branch is self.root:
                self.machine.family.generated(branch, [token_id])
                self.machine.clock_token(branch)
                goes_on = goes_on and (not self.is_family or self.machine.family.remaining > 0)
            if not goes_on:
                break
        if run.end is not None:
            if run.forks:
                stage.forking[branch] = stage.contexts[branch]
            stage.end_request(branch)
        return run

    def _detect_triggers(self, run: Run, token_id: int) -> bool:
        """Hear the token written last; returns whether its branch goes on behind it."""
        branch, spoken, context = run.branch, self.spoken, self.stage.contexts[run.branch]
        run.end, run.stop_reason = self._end_of(branch, token_id, run.token_ids)
        since = self.stage.since[branch]
        if run.end is not None:
            by_itself = token_id == EOS and run.end is not ThreadEnd.LENGTH
            if by_itself and (swap := planning.close_summary(self.machine, branch, len(context) - 1)):
                del context[-1], run.token_ids[-1]
                run.end = None
                self.calls.append(forking.swap(self.machine, swap))
                return False
            if by_itself and spoken.ends_turn_with_fork(context[since:-1]):
                plan = self._plan(branch, context[:-1], since)
                if isinstance(plan, Refusal):
                    forking.emit_refused(self.machine, branch, plan)
                else:
                    del context[-1], run.token_ids[-1]
                    run.end = None
                    self.calls.append(self._fork(branch, plan))
            return False
        if token_id == spoken.summary_end_id:
            refusal = self.machine.end_summary(branch)
            if refusal is not None:
                self.calls.append(forking.refuse(self.machine, branch, refusal))
            return refusal is None
        wrote = context[since:]
        if wrote and spoken.triggers(wrote):
            return self._hear_trigger(run)
        if wrote and (number := spoken.asked_for(wrote)) is not None:
            refusal = asking.refusal_to_ask(self.machine, branch, number, run.forks)
            if refusal is not None and refusal.policy is Policy.SEQUENTIAL:
                forking.emit_refused(self.machine, branch, refusal)
                return True
            self.calls.append(asking.wait_for(self.machine, branch, number))
            return False
        if text := spoken.written_itself(context):
            self.is_family = True
            if swap := planning.swap(self.machine, branch, text):
                self.calls.append(forking.swap(self.machine, swap))
                return False
        return True

    def _end_of(
        self, branch: Branch, token_id: int, wrote: list[int]
    ) -> tuple[ThreadEnd | None, int | str | None]:
        plan, is_answer = branch.plan, self.machine.dialect.join.threads_are_answers
        if token_id in self.stop_ids and not is_answer:
            return ThreadEnd.REQUEST_STOP, token_id
        if plan is None and token_id in self.spoken.stop_ids:
            return ThreadEnd.STOP, token_id
        if token_id == EOS or token_id in self.stop_ids:
            return (ThreadEnd.STOP if plan is None or plan.end is None else ThreadEnd.EOS), None
        if plan is not None and (
            token_id in self.spoken.end_ids(plan) or self.spoken.ends(plan, [*branch.token_ids, *wrote])
        ):
            return ThreadEnd.STOP, None
        return (None, None) if self.stage.left[branch] else (ThreadEnd.LENGTH, None)

    def _hear_trigger(self, run: Run) -> bool:
        branch, context = run.branch, self.stage.contexts[run.branch]
        is_first, since = not self.is_family, self.stage.since[branch]
        plan = self._plan(branch, context, since, run.forks)
        if is_first and branch is self.root:
            run.num_led = len(run.token_ids)
        if isinstance(plan, Refusal):
            if plan.policy is not Policy.SEQUENTIAL:
                self.calls.append(self._fork(branch, plan))
                return False
            self.stage.since[branch] = len(context)
            forking.emit_refused(self.machine, branch, plan)
            return True
        if self.machine.dialect.join.waits:
            self.calls.append(self._fork(branch, plan))
            return False
        self.stage.since[branch] = len(context)
        run.forks.append(Fork(plan, len(context), since, len(run.token_ids)))
        return True

    def _plan(
        self, branch: Branch, context: list[int], since: int, planned: Sequence[Fork] = ()
    ) -> ForkPlan | Refusal:
        self.is_family = True
        plan = planning.plan(self.machine, branch, context, since, planned)
        self.machine.num_planned += isinstance(plan, ForkPlan)
        return plan

    def _fork(self, branch: Branch, plan: ForkPlan | Refusal | None) -> Effects:
        """At the end of the step: ``branch`` has come to where it forks."""
        if branch not in self.stage.contexts or branch.state is not BranchState.DECODING:
            return
        context = self.stage.contexts[branch]
        plan = plan or self._plan(branch, context, self.stage.since[branch])
        since, self.stage.since[branch] = self.stage.since[branch], len(context)
        if isinstance(plan, Refusal):
            yield from forking.refuse(self.machine, branch, plan)
        else:
            yield from forking.fork(self.machine, branch, Fork(plan, len(context), since))

    def _take(self, run: Run) -> None:
        if run.branch is self.root:
            assert self.machine.recording is not None
            self.machine.recording.wrote(ROOT, run.token_ids, None)
        else:
            self.stage.perform(
                writing.thread_wrote(
                    self.machine,
                    run.branch,
                    run.token_ids,
                    run.end,
                    stop_reason=run.stop_reason,
                    likely=[[-1.0]] * len(run.token_ids),
                    forks=run.forks,
                )
            )
            return
        finish = None
        if run.end is not None:
            finish = "length" if run.end is ThreadEnd.LENGTH else "stop"
        if self.is_family and self.machine.buffers_parent_output:
            self._leave(run.token_ids[: run.num_led])
            self.stage.perform(
                writing.root_wrote(
                    self.machine,
                    [OutputToken(token_id) for token_id in run.token_ids],
                    finish,
                    stop_reason=run.stop_reason,
                    num_led=run.num_led,
                    forks=run.forks,
                )
            )
        else:
            self._leave(run.token_ids)
            self.finish = finish

    def _leave(self, token_ids: list[int]) -> None:
        """Let tokens out as any request's."""
        self.released += token_ids
        self.machine.family.num_shown += len(token_ids)
