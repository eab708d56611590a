"""What is added to the position of each token of a batch, or which path it is in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Int64s = npt.NDArray[np.int64]
#: Of how many consecutive tokens something is true, and what: an offset, a path.
Runs = list[tuple[int, int]]


def of_tokens(
    known: Mapping[str, Runs], request_ids: list[str], num_tokens: npt.NDArray[Any]
) -> Int64s | None:
    """What is ``known`` of each token of a batch, 0 where nothing is; None if that is all.

    Args:
        known: by request id.
        request_ids: the requests in the order of the batch.
        num_tokens: how many tokens of each are computed in this step.

    """
    if not known:
        return None
    runs = [
        run
        for request_id, num in zip(request_ids, num_tokens.tolist(), strict=False)
        for run in known.get(request_id) or [(num, 0)]
    ]
    counts, values = zip(*runs, strict=True) if runs else ((), ())
    return np.repeat(np.array(values, dtype=np.int64), counts) if any(values) else None


def add_offsets(positions: torch.Tensor, offsets: torch.Tensor, max_model_len: int) -> None:
    """Add ``offsets`` [n] in place to the first n of ``positions`` [..., tokens], of each row.

    A token has several rows with M-RoPE, which all move alike: then it is text. Drafts of tokens that would
    find no room come to the last position: rotations are known up to there.
    """
    moved = positions[..., : len(offsets)]
    moved += offsets
    moved.clamp_(max=max_model_len - 1)
