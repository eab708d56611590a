"""KV without a model: in the place of a token's keys and values, a slot of the cache holds a number.

It stands for the token, its position and the sum of all numbers that the token saw. So it says which tokens
were seen, at which positions, with what they had seen. Sums do not depend on the order of slots, as attention
does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from forkjoin_scheduler.vllm_seam.cache.worker_step_metadata import WorkerStepMetadata, metadata_of

MASK = (1 << 64) - 1


def number(token_id: int, position: int, seen: int) -> int:
    """What stands for the KV of a token at a position that saw tokens with the sum ``seen`` (splitmix64)."""
    word = (token_id * 0x9E3779B97F4A7C15 + position * 0xC2B2AE3D27D4EB4F + seen) & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def move(kv: np.ndarray, output: Any, block_size: int) -> WorkerStepMetadata:
    """Copy blocks and slots of ``kv`` as the step ``output`` says; returns its metadata.

    Workers do so before they compute any token of the step.
    """
    metadata, blocks = metadata_of(output), kv.reshape(-1, block_size)
    for copy in output.kv_cache_block_copies or ():
        blocks[copy.dst_block_id] = blocks[copy.src_block_id]
    kv[metadata.slot_copies[:, 1]] = kv[metadata.slot_copies[:, 0]]
    return metadata


def slots_of(block_ids: Sequence[int], num_tokens: int, block_size: int) -> np.ndarray:
    """The slots of the first ``num_tokens`` tokens of a request with these blocks."""
    places = np.arange(num_tokens)
    return np.array(block_ids)[places // block_size] * block_size + places % block_size


def offsets_of(metadata: WorkerStepMetadata, request_id: str, num_tokens: int) -> list[int]:
    """What a step with these ``orders`` adds to the positions of the ``num_tokens`` of a request."""
    offsets = metadata.token_offsets([request_id], np.array([num_tokens]))
    return [0] * num_tokens if offsets is None else offsets.tolist()
