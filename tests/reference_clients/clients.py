"""The clients, by the name of the dialect that serves the same models."""

from __future__ import annotations

from collections.abc import Callable

from tests.reference_clients import (
    first_ends,
    in_place,
    on_demand,
    one_block,
    points,
    rewritten,
    rounds,
    spliced,
    staged,
    voted,
)
from tests.reference_clients.completions import Completions
from tests.reference_clients.one_block import OneBlock
from tests.reference_clients.spliced import Spliced

#: Gives all that stands after a prompt in the end; the last argument is the limit of each thread.
Client = Callable[[Completions, str, int | None], str]

#: Turns are those of the embedded model's chat template.
WORKER = (
    "<|user|>Work on this sub-query, and give what you find between <RETURN> and </RETURN>.\n{}<|assistant|>"
)
POINT = "<|user|>Write point {} of this outline, and only that point, in one or two sentences.<|assistant|>"


def _one_block(rules: one_block.Rules) -> Client:
    return lambda model, prompt, limit: OneBlock(model, rules, limit).answer(prompt)


def _rounds(rules: rounds.Rules) -> Client:
    def answer(model: Completions, prompt: str, limit: int | None) -> str:
        before, user, rest = prompt.partition("<|user|>")
        question, assistant, after = rest.partition("<|assistant|>")
        return rounds.answer(model, (before + user, question, assistant + after), rules, limit)

    return answer


def _staged(rules: staged.Rules) -> Client:
    return lambda model, prompt, limit: staged.answer(model, prompt, rules, limit)


def _spliced(rules: spliced.Rules) -> Client:
    return lambda model, prompt, limit: Spliced(model, rules, limit).answer(prompt)


CLIENTS: dict[str, Client] = {
    "threadweaver": _one_block(one_block.THREADWEAVER),
    "threadweaver-eval": _one_block(one_block.THREADWEAVER_EVAL),
    "parallel-r1": _one_block(one_block.PARALLEL_R1),
    "multiverse": _one_block(one_block.MULTIVERSE),
    "npr": _one_block(one_block.NPR),
    "aspd": _one_block(one_block.ASPD),
    "parathinker": lambda model, prompt, limit: first_ends.answer(model, prompt, 3, limit),
    "apar": _spliced(spliced.APAR),
    "hpd": _spliced(spliced.HPD),
    "apr": rewritten.answer,
    "asyncthink": lambda model, prompt, limit: on_demand.answer(model, prompt, WORKER, limit),
    "pasta": in_place.answer,
    "medverse": _staged(staged.MEDVERSE),
    "medverse-eval": _staged(staged.MEDVERSE_EVAL),
    "ssft": lambda model, prompt, limit: voted.answer(
        model, [prompt + opening for opening in voted.OPENINGS], voted.BOXED, limit
    ),
    "pacore": _rounds(rounds.PACORE),
    "skeleton": lambda model, prompt, limit: points.answer(model, prompt, POINT, limit),
}

#: In the place of those above where cases are of a dialect with fewer words (``tests/engine/renamed.py``).
SHORT: dict[str, Client] = {
    "pacore": _rounds(rounds.Rules(widths=(3, 2), asks="{}:{}", refers=" {}={}")),
}

#: Built-in dialects without a client, each with the reason.
NONE: dict[str, str] = {
    "explicit": "no model was trained for it: a request says itself what forks; a vote is tried by itself",
}
