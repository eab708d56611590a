"""Reinforcement learning of a model on its own trees: the critical path falls, and the answers stay right.

    make install
    .venv/bin/python examples/rl_on_trees/rl_on_trees.py --seed 1

The notebook ``rl_on_trees.ipynb`` does the same step by step, and draws it.

The embedded model forks whenever it can, and is sure of it: there would be nothing to learn. The run first
takes that habit away: a short supervised phase makes a *start policy*, which forks in some of its answers. In
the others it works the problems out one after the other. Then it learns by reward alone, as GRPO does without
its division by the group's standard deviation and without a KL term: several answers to each prompt, the
reward of each less the mean of its group, a loss over the sampled tokens. Nothing else tells it to fork.
``--control`` learns once more from the same start policy, without a price: for right answers alone.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from actor import Actor, Answer, Measured, summary
from learner import Example, imitate, policy_gradient, take_step
from transformers import LlamaForCausalLM
from worksheets import draw_worksheet, reward

from forkjoin_server.start.configuration import EMBEDDED_MODEL


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a run, but for the rounding of the machine."""

    seed: int = 1
    #: What all steps of an answer without forks cost, of the 1 that a right answer earns.
    price: float = 0.5
    #: The supervised phase: steps, answers in each, and the share of them that fork.
    start_steps: int = 24
    start_answers: int = 12
    start_forks: float = 0.25
    start_rate: float = 3e-4
    #: The reinforced phase: rounds of answers, prompts in a round, answers to each, steps on them.
    rounds: int = 8
    prompts: int = 6
    group: int = 8
    steps_per_round: int = 2
    rate: float = 5e-5
    #: Held-out prompts that are measured, with one answer each.
    measured: int = 120


def load_model() -> LlamaForCausalLM:
    """The embedded model for the trainer, in the engine's arithmetic. Nothing in it is random: no dropout."""
    return LlamaForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)


def measure(actor: Actor, recipe: Recipe) -> Measured:
    """The weights of ``actor`` on held-out prompts: the same for all weights and recipes."""
    rng = random.Random("measured")
    sheets = [draw_worksheet(rng, held_out=True) for _ in range(recipe.measured)]
    return summary([answer for group in actor.groups(sheets, 1, seed=0) for answer in group])


def make_start_policy(actor: Actor, model: LlamaForCausalLM, recipe: Recipe) -> None:
    """Teach ``model`` to fork in some of its answers only, and give the weights to ``actor``.

    It imitates its own right answers that fork, and written ones that do not, of different prompts.
    """
    rng = random.Random(f"start {recipe.seed}")
    num = recipe.start_steps * recipe.start_answers
    num_forks = round(num * recipe.start_forks)
    sheets = [draw_worksheet(rng, held_out=False) for _ in range(num)]
    own = [answer for group in actor.groups(sheets[:num_forks], 1, recipe.seed) for answer in group]
    texts = [answer.tree.rows() for answer in own if answer.is_right and answer.forks]
    texts += [[actor.plain_row(sheet)] for sheet in sheets[num_forks:]]
    rng.shuffle(texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.start_rate, weight_decay=0)
    for first in range(0, len(texts), recipe.start_answers):
        rows = [row for text in texts[first : first + recipe.start_answers] for row in text]
        take_step(model, optimizer, [Example(row) for row in rows], imitate)
    actor.take_weights(model, "start")


@dataclass(frozen=True)
class Round:
    """The answers of a round, before its steps.

    ``difference``: how far the trainer's log-probabilities and the engine's are apart at most, in nats, in
    the rows of the first step that have an advantage.
    """

    number: int
    answers: Measured
    reward: float
    difference: float

    def __str__(self) -> str:
        return f"round {self.number}: reward {self.reward:.3f}; {self.answers}"


def reinforce(actor: Actor, model: LlamaForCausalLM, recipe: Recipe) -> Iterator[Round]:
    """Rounds of answers and steps on them; after each, ``actor`` has the new weights."""
    rng = random.Random(f"reinforce {recipe.seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0)
    for number in range(1, recipe.rounds + 1):
        sheets = [draw_worksheet(rng, held_out=False) for _ in range(recipe.prompts)]
        groups = actor.groups(sheets, recipe.group, seed=rng.randrange(2**31))
        examples, differences = [judged(group, recipe.price) for group in groups], []
        for part in range(recipe.steps_per_round):
            chosen = [e for group in examples[part :: recipe.steps_per_round] for e in group]
            differences.append(take_step(model, optimizer, chosen, policy_gradient))
        actor.take_weights(model, f"round-{number}")
        answers = [answer for group in groups for answer in group]
        mean = statistics.mean(worth(answer, recipe.price) for answer in answers)
        yield Round(number, summary(answers), mean, differences[0])


def judged(group: Sequence[Answer], price: float) -> list[Example]:
    """The rows of a group's answers, each with its answer's advantage: its reward less the group's mean."""
    rewards = [worth(answer, price) for answer in group]
    mean = statistics.mean(rewards)
    return [
        Example(row, earned - mean)
        for answer, earned in zip(group, rewards, strict=True)
        for row in answer.tree.rows()
    ]


def worth(answer: Answer, price: float) -> float:
    """The reward of ``answer``."""
    return reward(
        is_right=answer.is_right,
        num_steps=answer.num_steps,
        without_fork_steps=answer.without_fork_steps,
        price=price,
    )


def run(
    recipe: Recipe, *, with_control: bool = False, say: Callable[[str], None] = print
) -> dict[str, object]:
    """The whole run; returns what was measured.

    ``with_control``: afterwards the start policy learns without a price, on the same prompts.
    """
    began = time.monotonic()
    actor = Actor()
    model = load_model()
    measured = {"embedded model": measure(actor, recipe)}
    say(f"embedded model: {measured['embedded model']}")
    make_start_policy(actor, model, recipe)
    measured["start policy"] = measure(actor, recipe)
    say(f"start policy: {measured['start policy']}")
    start = {name: weights.clone() for name, weights in model.state_dict().items()}
    recipes = {"after learning": recipe}
    if with_control:
        recipes["control"] = replace(recipe, price=0.0)
    rounds: dict[str, list[Round]] = {}
    for name, own in recipes.items():
        model.load_state_dict(start)
        actor.take_weights(model, "start")
        rounds[name] = []
        for done in reinforce(actor, model, own):
            rounds[name].append(done)
            say(str(done))
        measured[name] = measure(actor, own)
        say(f"{name}: {measured[name]}")
    say(f"{time.monotonic() - began:.0f} s")
    return {
        "recipe": asdict(recipe),
        "measured": {name: asdict(value) for name, value in measured.items()},
        "rounds": {name: [asdict(done) for done in of_name] for name, of_name in rounds.items()},
    }


def main() -> None:
    """Command line: an option for each field of the recipe."""
    parser = argparse.ArgumentParser(description="Reinforcement learning on an answer's own trees.")
    defaults = asdict(Recipe())
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--control", action="store_true", help="learn once more, without a price")
    parser.add_argument("--json", type=Path, help="where to write what was measured")
    given = vars(parser.parse_args())
    out, with_control = given.pop("json"), given.pop("control")
    result = run(replace(Recipe(), **given), with_control=with_control)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
