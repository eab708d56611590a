"""Steps of a model on rows of trees: plain PyTorch. A loss counts sampled tokens only, each of them once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import LlamaForCausalLM

from forkjoin import Row

#: Padded tokens of one forward pass: what the memory and the caches of a small machine hold.
TOKENS_PER_PASS = 8192
#: A token's probability may move by this share in one batch; what moves it further gives no gradient (PPO).
CLIP = 0.2


@dataclass(frozen=True)
class Example:
    """A row, and what each of its counted tokens weighs: 1 to imitate it, or the advantage of its answer."""

    row: Row
    weight: float = 1.0


#: Of the new and the sampled log-probabilities of tokens, and their weights, all [tokens]: the loss of each.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def imitate(new: Tensor, sampled: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy."""
    return -weights * new


def policy_gradient(new: Tensor, sampled: Tensor, weights: Tensor) -> Tensor:
    """PPO's clipped surrogate: ``weights`` are advantages, ``sampled`` are the engine's log-probabilities."""
    ratio = (new - sampled).exp()
    return -torch.minimum(ratio * weights, ratio.clamp(1 - CLIP, 1 + CLIP) * weights)


def take_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, examples: Sequence[Example], loss: Loss
) -> float:
    """One optimizer step on the mean of ``loss`` over all counted tokens, those of weight 0 too.

    Returns the largest difference, in nats, of a log-probability from the sampled one, before the step.
    """
    num_tokens = sum(sum(example.row.mask) for example in examples)
    difference = 0.0
    for batch in batches([example for example in examples if example.weight]):
        new, sampled, weights = counted_logprobs(model, batch)
        (loss(new, sampled, weights).sum() / num_tokens).backward()
        difference = max(difference, (new.detach() - sampled).abs().max().item())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return difference


def batches(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Examples of similar length, ``TOKENS_PER_PASS`` padded tokens at a time."""
    waiting = sorted(examples, key=lambda e: len(e.row.prompt_ids) + len(e.row.completion_ids))
    while waiting:
        longest = len(waiting[-1].row.prompt_ids) + len(waiting[-1].row.completion_ids)
        num = max(1, TOKENS_PER_PASS // longest)
        yield waiting[-num:]
        del waiting[-num:]


def counted_logprobs(model: LlamaForCausalLM, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the tokens that count: their log-probabilities by ``model``, those sampled, and their weights.

    The padding stands at the end of a row, where the tokens before it do not see it.
    """
    ids = [torch.tensor(e.row.prompt_ids + e.row.completion_ids) for e in examples]
    length = max(map(len, ids))
    inputs = torch.stack([pad(row, (0, length - len(row))) for row in ids])
    counts = torch.stack([_of_completion(e.row, e.row.mask, length) for e in examples]).bool()[:, 1:]
    sampled = torch.stack([_of_completion(e.row, e.row.logprobs, length) for e in examples])[:, 1:]
    weights = torch.tensor([e.weight for e in examples])[:, None].expand(counts.shape)
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1][counts]
    new = -cross_entropy(logits, inputs[:, 1:][counts], reduction="none")
    return new, sampled[counts], weights[counts]


def _of_completion(row: Row, values: Sequence[float], length: int) -> Tensor:
    """``values`` of a row's completion at their places in a padded row, 0 elsewhere."""
    start = len(row.prompt_ids)
    return pad(torch.tensor(values, dtype=torch.float32), (start, length - start - len(values)))
