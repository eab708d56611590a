"""What follows a stitched join, by one forward pass of transformers with explicit positions and mask.

``python -m forkjoin_server.vllm_seam.verify.masked SEEN OUT``, with what ``engine_case`` wrote. No plain
request can compute such a context: its threads do not see each other, and have the same positions.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch


def main(seen_file: Path, out: Path) -> None:
    """Write the log-probabilities of what follows the join, and controls that must differ, to ``out``."""
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
    positions, mask = layout(len(seen["prompt"]), [len(t) for t in seen["threads"]], len(seen["after"]))
    num = len(positions)
    in_a_row = torch.arange(num), torch.ones(num, num, dtype=torch.bool).tril()
    unseen = mask.clone()
    first, end = len(seen["prompt"]) + len(seen["threads"][0]), num - len(seen["after"])
    unseen[end:, first : first + len(seen["threads"][1])] = False
    told = {
        "right": _said(model, seen, positions, mask),
        "positions_wrong": _said(model, seen, in_a_row[0], mask),
        "mask_wrong": _said(model, seen, positions, in_a_row[1]),
        "thread_unseen": _said(model, seen, positions, unseen),
    }
    out.write_text(json.dumps(told))


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


def _said(
    model: Any, seen: dict[str, Any], positions: torch.Tensor, mask: torch.Tensor
) -> list[tuple[float, float]]:
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
    first = len(ids) - len(seen["after"]) + seen["num_join"]
    return [(float(rows[i - 1][ids[i]]), float(rows[i - 1].max())) for i in range(first, len(ids))]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
