"""The world of a replay: contexts are lists of tokens, and what machines want is done on these."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.families.pruner import Pruner
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.machine import effects, ending, forking
from forkjoin_scheduler.machine.effects import Effects
from forkjoin_scheduler.machine.machine import Machine


class TextWorld:
    """Owns the contexts of all branches, and what was put into them."""

    max_model_len = sys.maxsize
    eos_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.contexts: dict[Branch, list[int]] = {}
        #: What joins put after threads, by the branch that goes on after it.
        self.closing: dict[Branch, tuple[int, ...]] = {}
        self.has_ended = False

    def now(self) -> float:
        return 0.0

    def context(self, branch: Branch) -> list[int]:
        return self.contexts[branch]

    def num_computed(self, branch: Branch) -> int:
        return len(self.contexts[branch])

    def is_running(self, thread: Branch) -> bool:
        return thread in self.contexts

    def is_standing(self, branch: Branch) -> bool:
        return False

    def holds_kv(self, thread: Branch) -> bool:
        return True

    def free_kv(self) -> float:
        return 1.0

    def pruner(self, name: str, vote: Vote) -> Pruner | None:
        return None

    def blame(self, policy: str, error: BaseException) -> None:
        raise error

    def perform(self, machine: Machine, wanted: Effects) -> None:
        """Do what is ``wanted``, as far as texts show it."""
        for effect in wanted:
            if do := _PERFORMED_BY.get(type(effect)):
                do(self, machine, effect)

    def start(self, machine: Machine, effect: effects.Start) -> None:
        thread = effect.thread
        assert thread.plan is not None
        assert thread.parent is not None
        self.contexts[thread] = [*self.contexts[thread.parent][: thread.fork_len], *thread.plan.header_ids]

    def keep(self, machine: Machine, effect: effects.Keep) -> None:
        self.perform(machine, ending.closed(machine, effect.thread))

    def resume(self, machine: Machine, effect: effects.Resume) -> None:
        context, plan = self.contexts[effect.branch], effect.plan
        del context[len(context) if plan.keep is None else plan.keep :]
        context += plan.token_ids
        self.closing[effect.branch] = plan.closing_ids
        if effect.forks:
            self.perform(machine, forking.next_stage(machine, effect.branch))

    def end(self, machine: Machine, effect: effects.EndFamily) -> None:
        self.has_ended = True


#: What has a text; where KV lies has none.
_PERFORMED_BY: dict[type[effects.Effect], Callable[[TextWorld, Machine, Any], None]] = {
    effects.Start: TextWorld.start,
    effects.Keep: TextWorld.keep,
    effects.Resume: TextWorld.resume,
    effects.EndFamily: TextWorld.end,
}
