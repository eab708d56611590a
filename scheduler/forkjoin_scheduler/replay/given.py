"""An earlier answer is written again by its dialect's machine, without a model: what its tree has to be.

Only what its branches sampled is taken from it (``request/given.py``). Headers, joins and positions are made
again, so whoever compares the two trees knows whether this server would have given the one that it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import ForkAt
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.families.family import Branch, BranchState, Family
from forkjoin_scheduler.families.fork import ForkPlan, Refusal
from forkjoin_scheduler.machine import advancing, ending, forking, planning, writing
from forkjoin_scheduler.machine.effects import Effects, EndFamily, Keep, Resume, Start
from forkjoin_scheduler.machine.forking import Fork
from forkjoin_scheduler.machine.machine import Machine, Terms
from forkjoin_scheduler.publish.events import Event
from forkjoin_scheduler.publish.recording import Recording, branch_of
from forkjoin_scheduler.replay.world import TextWorld
from forkjoin_scheduler.request.given import FORK, OPEN, Given, Stretch


@dataclass(frozen=True)
class Engine:
    """What of an engine a replay goes by. ``max_logprobs``: likeliest tokens that it tells; -1: all."""

    bound_dialect: BoundDialect
    max_model_len: int
    eos_ids: frozenset[int]
    max_logprobs: int = -1


@dataclass
class _Sampling:
    seed: int | None = None
    logprobs: int | None = None


class GivenWorld(TextWorld):
    """Texts, and which branches have begun or gone on."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine) -> None:
        super().__init__(tokenizer)
        self.max_model_len, self.eos_ids = engine.max_model_len, engine.eos_ids
        self.going_on: list[Branch] = []

    def perform(self, machine: Machine, wanted: Effects) -> None:
        for effect in wanted:
            match effect:
                case Start():
                    self.start(machine, effect)
                case Keep(thread=thread):
                    self.perform(machine, ending.closed(machine, thread))
                case Resume(branch=branch, plan=plan):
                    context = self.contexts[branch]
                    del context[len(context) if plan.keep is None else plan.keep :]
                    context += plan.token_ids
                case EndFamily():
                    self.has_ended = True
            if isinstance(effect, (Start, Resume)):
                assert machine.recording is not None
                machine.recording.note(machine, effect, None)
                self.going_on.append(branch_of(effect))


def replay_given(given: Given, terms: Terms, family: Family, engine: Engine) -> list[Event]:
    """The events that tell of the tree. Raises BadRequestOptions if no answer of this engine is like it."""
    world = GivenWorld(engine.bound_dialect.tokenizer, engine)
    machine = Machine(family, terms, world)
    machine.recording = Recording(given.prompt_ids, _Sampling())
    world.contexts[family.root] = list(given.prompt_ids)
    world.going_on.append(family.root)
    events: list[Event] = []
    while world.going_on:
        branch = world.going_on.pop(0)
        stretch = machine.take_given(branch) if branch.state is BranchState.DECODING else None
        if stretch is not None:
            _write(machine, world, branch, stretch)
        if not world.going_on:
            world.perform(machine, advancing.advance(machine))
        if world.has_ended:
            raise _bad(
                "expected an answer that goes on, but this server would have ended it before, by its limits"
            )
        events += machine.events
        machine.events = []
    if left := [path for path, stretches in machine.given.items() if stretches]:
        whose = f"the branch {left[0]}" if left[0] else "the request itself"
        raise _bad(f"expected no segments of {whose} where it would not have gone on: is it of this dialect?")
    return [*events, *machine.recording.take()]


def _write(machine: Machine, world: GivenWorld, branch: Branch, stretch: Stretch) -> None:
    context, since = world.contexts[branch], writing.since(machine, branch, stretch)
    num_tokens = len(context) + len(stretch.token_ids)
    if num_tokens + (stretch.then == OPEN) > world.max_model_len:
        raise _bad(f"expected contexts of less than {world.max_model_len} tokens, got one of {num_tokens}")
    if stretch.parts and _forks_first(machine, branch, context):
        raise _bad(
            "expected a tree that forked after its prompt, as the request does, got one that went on "
            "without: leave out what asks for that fork, or give forkjoin.max_forks = 0"
        )
    world.perform(machine, writing.give(machine, branch, stretch))
    context += stretch.token_ids
    if stretch.then == FORK:
        _fork(machine, world, branch, since)


def _forks_first(machine: Machine, branch: Branch, context: list[int]) -> bool:
    """Whether ``branch`` is a request that forks before it writes."""
    if branch is not machine.family.root or branch.forks or machine.dialect.fork_at is not ForkAt.PROMPT:
        return False
    return isinstance(planning.plan(machine, branch, context, len(context)), ForkPlan)


def _fork(machine: Machine, world: GivenWorld, branch: Branch, since: int) -> None:
    if branch.planned:
        world.perform(machine, forking.next_stage(machine, branch))
        return
    context = world.contexts[branch]
    plan = planning.plan(machine, branch, context, since, had_forked=True)
    if isinstance(plan, Refusal):
        whose = "the request" if branch.plan is None else f"thread {branch.index}"
        raise _bad(
            f"expected forks that the dialect {machine.dialect.name} makes within the request's limits, but "
            f"{whose} may not fork where it has: {plan.reason}"
        )
    world.perform(machine, forking.fork(machine, branch, Fork(plan, len(context), since)))


def _bad(problem: str) -> BadRequestOptions:
    return BadRequestOptions(f"forkjoin.continues_tree: {problem}")


def unsupported(engine: Engine, asked: Sequence[tuple[str, bool]]) -> str | None:
    """Why no answer of this kind can be gone on with; None: it can. ``asked``: what else is, by its name."""
    dialect = engine.bound_dialect.dialect
    if not dialect.join.waits:
        return f"a dialect whose requests go on beside their threads ({dialect.name})"
    if dialect.join.asks_again:
        return f"a dialect of rounds ({dialect.name})"
    if dialect.summary is not None:
        return f"a dialect of summaries ({dialect.name})"
    return next((name for name, is_asked in asked if is_asked), None)
