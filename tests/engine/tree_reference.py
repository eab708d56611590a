"""What the log-probabilities of a tree must be: one forward pass of transformers with its positions and mask."""

from __future__ import annotations

from typing import Any

import torch

from forkjoin import Tree
from forkjoin_scheduler.settings import TREE
from forkjoin_server.trees import TreeBuilder
from forkjoin_server.vllm_seam.offline.tree_output import TreeOutputProcessor


def run(engine: Any, prompts: list[list[int]], params: list[Any]) -> list[Tree]:
    """Run requests together in an engine of ``harness.py``; their trees. Each must fork."""
    core = engine.core
    before, core.output_processor = (
        core.output_processor,
        TreeOutputProcessor.in_place_of(core.output_processor),
    )
    try:
        for of_request in params:
            of_request.extra_args = (of_request.extra_args or {}) | {TREE: True}
            of_request.logprobs = of_request.logprobs or 0
        ids = [engine.add(prompt, of_request) for prompt, of_request in zip(prompts, params, strict=True)]
        answers = engine.drain()
        builders: dict[tuple[str, int], TreeBuilder] = core.output_processor.builders
        return [builders[i, 0].tree(answers[i].token_ids, answers[i].finish_reason) for i in ids]
    finally:
        core.output_processor = before


@torch.inference_mode()
def deltas(
    model: Any,
    tree: Tree,
    *,
    positions: list[int] | None = None,
    mask: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """How far the logprob of each sampled token is from that of one pass; all of them have one.

    ``temperature``: what the logits of the pass are divided by.
    """
    layout = tree.layout
    mask = torch.tensor(tree.attention_mask()) if mask is None else mask
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    logits = model(
        input_ids=torch.tensor([layout.token_ids]),
        position_ids=torch.tensor([positions or tree.positions()]),
        attention_mask=additive[None, None],  # one sequence, one mask for all heads; 4D is taken as it is
        use_cache=False,
    ).logits[0]
    places = [place for place, is_sampled in enumerate(layout.sampled) if is_sampled]
    predictors = [layout.predictors[place] for place in places]
    assert min(predictors) >= 0
    rows = (logits[predictors].float() / temperature).log_softmax(-1)
    said = rows[range(len(places)), [layout.token_ids[place] for place in places]]
    return (said - torch.tensor([layout.logprobs[place] for place in places])).abs()


def in_a_row(tree: Tree) -> torch.Tensor:
    """The mask of one sequence: a wrong one wherever something is not seen that stands before."""
    num = len(tree.layout.token_ids)
    return torch.ones(num, num, dtype=torch.bool).tril()
