"""What vLLM's sampler spreads over drafts on a CPU: a temperature, or another number of each request."""

from __future__ import annotations

import sys

import pytest
import torch


@pytest.fixture(scope="module")
def expand():
    from vllm.platforms import current_platform
    from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens

    from forkjoin_scheduler.vllm_seam.mends.drafted_temperatures import spread_temperatures_over_drafts

    spread_temperatures_over_drafts()
    with pytest.MonkeyPatch.context() as patched:
        # A worker does this before it loads numba; vLLM's walk over all modules fails on llvmlite's library.
        for name in [name for name in sys.modules if name.partition(".")[0] in ("llvmlite", "numba")]:
            patched.delitem(sys.modules, name)
        current_platform.register_triton_kernel_overrides()
    return expand_batch_to_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_each_request_has_its_own_for_all_its_drafts(expand, dtype):
    values, ends = torch.tensor([3, 0, 5], dtype=dtype), torch.tensor([2, 2, 5], dtype=torch.int32)
    assert expand(values, ends, 5).tolist() == [3, 3, 5, 5, 5]


def test_a_number_that_means_none_is_replaced(expand):
    """Greedy requests, of temperature 0, are not to be divided by it."""
    spread = expand(torch.tensor([0.0, 0.7]), torch.tensor([1, 3]), 3, 0, 1)
    assert spread.tolist() == pytest.approx([1, 0.7, 0.7])
