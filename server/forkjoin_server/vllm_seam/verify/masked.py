"""What threads write and what follows a join, by forward passes of transformers with positions and mask.

``python -m forkjoin_server.vllm_seam.verify.masked SEEN OUT stitch|reprefill``, with what ``engine_case``
wrote. No plain request can compute a stitched context: its threads do not see each other, and have the same
positions. Threads are the same before either join.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

#: Of a token: its log-probability, and that of the best one.
Likely = tuple[float, float]


def main(seen_file: Path, out: Path, join: str) -> None:
    """Write log-probabilities to ``out``: of threads, of what follows the join, and of controls.

    With 16 bits also the same with the weights in 32, if they can be: where the two differ, rounding alone
    moves a token.
    """
    from transformers import AutoModelForCausalLM

    seen = json.loads(seen_file.read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        seen["model"],
        revision=seen["revision"],
        trust_remote_code=seen["trust_remote_code"],
        dtype=getattr(torch, seen["dtype"]),
        attn_implementation="eager",
    )
    model = model.to(device).eval()
    told = _of_join(model, seen, join)
    if join == "stitch":
        told |= _controls(model, seen)
    out.write_text(json.dumps(told))  # before what follows, for which there may be no memory
    if model.dtype != torch.float32:
        exact = _of_join(model.float(), seen, join)
        told |= {"unrounded": exact["right"], "threads_unrounded": exact["threads"]}
        out.write_text(json.dumps(told))


def _of_join(model: Any, seen: dict[str, Any], join: str) -> dict[str, Any]:
    positions, mask = _layout(seen)
    stitched = _said(model, seen, positions, mask)
    first, threads = len(seen["prompt"]), []
    for thread, num_header in zip(seen["threads"], seen["num_header"], strict=True):
        threads.append(stitched[first + num_header : first + len(thread)])
        first += len(thread)
    joined = stitched if join == "stitch" else _said(model, seen, *_in_a_row(len(positions)))
    return {"threads": threads, "right": _after(seen, joined)}


def _controls(model: Any, seen: dict[str, Any]) -> dict[str, list[Likely]]:
    positions, mask = _layout(seen)
    in_a_row, unseen = _in_a_row(len(positions)), mask.clone()
    first, end = len(seen["prompt"]) + len(seen["threads"][0]), len(positions) - len(seen["after"])
    unseen[end:, first : first + len(seen["threads"][1])] = False
    passes = {
        "positions_wrong": (in_a_row[0], mask),
        "mask_wrong": (positions, in_a_row[1]),
        "thread_unseen": (positions, unseen),
    }
    return {name: _after(seen, _said(model, seen, *of)) for name, of in passes.items()}


def _layout(seen: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return layout(len(seen["prompt"]), [len(t) for t in seen["threads"]], len(seen["after"]))


def _in_a_row(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(num), torch.ones(num, num, dtype=torch.bool).tril()


def _after(seen: dict[str, Any], said: list[Likely]) -> list[Likely]:
    """Of what follows the join's text."""
    return said[len(said) - len(seen["after"]) + seen["num_join"] :]


def layout(num_prompt: int, threads: list[int], num_after: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The position of each token, and who (row) sees whom (column), in the order of a stitched context."""
    positions = list(range(num_prompt))
    ends = [num_prompt]
    for length in threads:
        positions += range(num_prompt, num_prompt + length)
        ends.append(len(positions))
    start = num_prompt + max(threads)
    positions += range(start, start + num_after)
    mask = torch.ones(len(positions), len(positions), dtype=torch.bool).tril()
    for first, end in pairwise(ends):
        mask[first:end, num_prompt:first] = False
    return torch.tensor(positions), mask


def _said(model: Any, seen: dict[str, Any], positions: torch.Tensor, mask: torch.Tensor) -> list[Likely]:
    """Of each token of the context. Nothing predicts the first."""
    ids = torch.tensor([*seen["prompt"], *(t for thread in seen["threads"] for t in thread), *seen["after"]])
    dtype, device = model.dtype, model.device
    added = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    with torch.inference_mode():
        logits = model(
            input_ids=ids[None].to(device),
            position_ids=positions[None].to(device),
            attention_mask=added[None, None].to(device),
            use_cache=False,
        ).logits[0]
    rows = logits.float().log_softmax(-1).cpu()
    return [(0.0, 0.0), *((float(rows[i - 1][ids[i]]), float(rows[i - 1].max())) for i in range(1, len(ids)))]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
