"""What a stitched join must give: one fp32 forward pass of transformers with explicit positions and mask.

A *context* (the root's or a thread's) is a list of parts: ``Run``s of tokens and ``Fork``s into threads. A fork
stands directly behind the run whose last token is its trigger; the run behind it begins with the join text.

    root = [
        Run(prompt_and_text_up_to_the_trigger),
        Fork([[Run(header_and_text)], [Run(header_and_text_up_to_a_trigger), Fork([...]), Run(more)]]),
        Run(join_text_and_continuation),
    ]

A part is named by its *path*: ``(2,)`` is the root's third part, ``(1, 0, 0)`` the first part of thread 0 of the
fork ``(1,)``. Tokens lie in KV order, depth first, threads in their order: a token's place there is its *slot*.

Nothing here is computed by vLLM or by the scheduler's code: that is what makes it a reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from forkjoin_server.start.configuration import EMBEDDED_MODEL

#: Where a part stands: its index, or those of the forks and threads around it and then its own.
PartPath = tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """Tokens that follow each other in one context."""

    token_ids: list[int]


@dataclass(frozen=True)
class Fork:
    """Threads that see what came before the fork, and not each other."""

    threads: list[Context]


Context = list[Run | Fork]


@dataclass
class Flat:
    """A context's tokens in KV order."""

    token_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    #: For each slot the slots that it attends to, ascending, itself the last.
    visible: list[list[int]] = field(default_factory=list)
    #: For each slot the one that predicts it; None at the root's start and at the first token of a run behind a fork.
    predictor: list[int | None] = field(default_factory=list)
    #: The slots of each run, by its path.
    slots: dict[PartPath, range] = field(default_factory=dict)

    @property
    def mask(self) -> torch.Tensor:
        """Who (row) attends to whom (column): bool [n, n]."""
        mask = torch.zeros(len(self.token_ids), len(self.token_ids), dtype=torch.bool)
        for slot, visible in enumerate(self.visible):
            mask[slot, visible] = True
        return mask


def flatten(context: Context, *, fork_gap: int = 1, join_gap: int = 1) -> Flat:
    """Lay ``context`` out in KV order.

    A thread's first token is at its trigger's position + ``fork_gap``; the first token behind a fork is at the
    largest position of its threads, nested ones included, + ``join_gap``; all others follow their predecessor.

    Raises:
        ValueError: A run or a fork is empty, or a fork is not directly behind a run of its context.
    """
    flat = Flat()
    _append(flat, context, path=(), inherited=[], position=0, predictor=None, gaps=(fork_gap, join_gap))
    return flat


def _append(
    flat: Flat,
    context: Context,
    *,
    path: PartPath,
    inherited: list[int],
    position: int,
    predictor: int | None,
    gaps: tuple[int, int],
) -> None:
    """Append ``context``, which sees the slots ``inherited`` and whose first token is at ``position``."""
    _check(context, path)
    fork_gap, join_gap = gaps
    start = len(flat.token_ids)
    for index, part in enumerate(context):
        first = len(flat.token_ids)
        if isinstance(part, Run):
            for token_id in part.token_ids:
                slot = len(flat.token_ids)
                flat.token_ids.append(token_id)
                flat.position_ids.append(position)
                # all that this context has appended so far is its own, forks that it has joined included
                flat.visible.append([*inherited, *range(start, slot + 1)])
                flat.predictor.append(predictor)
                predictor, position = slot, position + 1
            flat.slots[*path, index] = range(first, len(flat.token_ids))
        else:
            trigger = first - 1
            for number, thread in enumerate(part.threads):
                _append(
                    flat,
                    thread,
                    path=(*path, index, number),
                    inherited=[*inherited, *range(start, first)],
                    position=flat.position_ids[trigger] + fork_gap,
                    predictor=trigger,
                    gaps=gaps,
                )
            predictor, position = None, max(flat.position_ids[first:]) + join_gap


def _check(context: Context, path: PartPath) -> None:
    """Refuse a context without a first token, and a fork without a trigger or threads."""
    if not context:
        raise ValueError(f"context {path}: expected parts, there are none")
    for index, part in enumerate(context):
        if not (part.token_ids if isinstance(part, Run) else part.threads):
            raise ValueError(f"part {(*path, index)} is empty: leave it out")
        if isinstance(part, Fork) and (index == 0 or isinstance(context[index - 1], Fork)):
            raise ValueError(f"fork {(*path, index)}: expected a run, which ends in the trigger, before it")


@cache
def load_model(path: Path = EMBEDDED_MODEL) -> LlamaForCausalLM:
    """The model in fp32 (the embedded one's weights are bf16 on disk), its attention written out."""
    model = LlamaForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return model.eval()


@torch.inference_mode()
def logprobs(
    model: LlamaForCausalLM,
    context: Context,
    *,
    fork_gap: int = 1,
    join_gap: int = 1,
    positions_wrong: bool = False,
    mask_wrong: bool = False,
) -> torch.Tensor:
    """What the model says behind each slot: log-softmax, fp32 [n, vocabulary], by one forward pass.

    The flags are the controls, which a sensitive comparison must reject: ``positions_wrong`` takes slots for
    positions, ``mask_wrong`` lets each token see every earlier slot.
    """
    flat = flatten(context, fork_gap=fork_gap, join_gap=join_gap)
    num_tokens = len(flat.token_ids)
    positions = list(range(num_tokens)) if positions_wrong else flat.position_ids
    mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril() if mask_wrong else flat.mask
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    logits = model(
        input_ids=torch.tensor([flat.token_ids]),
        position_ids=torch.tensor([positions]),
        attention_mask=additive[None, None],  # one sequence, one mask for all heads; 4D is taken as it is
        use_cache=False,
    ).logits
    return logits[0].float().log_softmax(-1)


def next_logprobs(flat: Flat, given: torch.Tensor, path: PartPath) -> list[torch.Tensor | None]:
    """For each token of the run at ``path`` the row of ``given`` (of ``logprobs``) that predicted it.

    That of a thread's first token is the trigger's; None where nothing predicts: the root's first token, and
    the first of a run behind a fork, which is injected.
    """
    predictors = [flat.predictor[slot] for slot in flat.slots[path]]
    return [None if p is None else given[p] for p in predictors]


def greedy(
    model: LlamaForCausalLM,
    context: Context,
    num_tokens: int,
    *,
    eos_token_id: int | None = None,
    fork_gap: int = 1,
    join_gap: int = 1,
) -> list[int]:
    """The tokens that continue the root's last run: ``num_tokens``, or fewer of which ``eos_token_id`` is the last.

    Each is found by a forward pass over everything.

    Raises:
        ValueError: The root ends in a fork.
    """
    *before, last = context
    if not isinstance(last, Run):
        raise ValueError("expected the root to end in a run: behind a fork nothing is predicted")  # noqa: TRY004
    written: list[int] = []
    while len(written) < num_tokens and (not written or written[-1] != eos_token_id):
        longer = [*before, Run(last.token_ids + written)]
        written.append(int(logprobs(model, longer, fork_gap=fork_gap, join_gap=join_gap)[-1].argmax()))
    return written
