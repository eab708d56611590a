"""What the workers run before the first request: the kernels of forks and joins, and none of it on the KV cache."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.v1.kv_cache_layout import KVCacheLayout

from forkjoin_scheduler.tensors.slots import COPIERS
from forkjoin_scheduler.vllm_seam.worker import CopiesSlots
from tests.engine.test_layouts import Memory


def _runner(copiers, views):
    """A model runner with layers whose caches are ``views``."""
    runner = CopiesSlots()
    runner._stitched = tuple(
        (copier, SimpleNamespace(kv_cache=view)) for copier, view in zip(copiers, views, strict=True)
    )
    return runner


@pytest.mark.parametrize("layout", [KVCacheLayout.LBNHC, KVCacheLayout.BLHNC], ids=lambda x: x.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_warm_up_runs_each_copier_and_touches_no_slot(layout, dtype):
    memory = Memory(layout, 32, head_size=32, dtype=dtype)
    raw = memory.random_bytes()
    before, views, ran = raw.clone(), memory.views(raw), []

    def noting(name, copier):
        def copy(cache, source, destination):
            assert cache.untyped_storage().data_ptr() != raw.untyped_storage().data_ptr()
            ran.append((name, cache.dtype, cache.shape[1:]))
            copier(cache, source, destination)

        return copy

    name = ("FLASH_ATTN", None)
    _runner([noting(name, COPIERS[name])] * 3, views).warm_up()
    assert torch.equal(raw, before)
    assert ran == [(name, dtype, (3, *views[0].shape[1:]))]


@pytest.mark.parametrize("name", COPIERS, ids=str)
def test_every_copier_is_warmed_by_a_copy_as_it_makes_them(name):
    memory = Memory(KVCacheLayout.LBHNC, 32, head_size=32)
    raw = memory.random_bytes()
    before = raw.clone()
    runner = _runner([COPIERS[name]] * 3, memory.views(raw))
    runner.warm_up()
    assert torch.equal(raw, before)
    runner._copy_slots(np.array([[0, 40]]))
    assert not torch.equal(raw, before)


def test_a_runner_that_moves_nothing_has_nothing_to_warm():
    CopiesSlots().warm_up()
