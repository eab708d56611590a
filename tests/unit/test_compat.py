"""Engine options that can't be combined with fork/join are refused, naming them."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace as Facts

import pytest

from forkjoin_scheduler.errors import UnsupportedEngine
from forkjoin_scheduler.vllm_seam import compat


def _config(**changes):
    """What the checks read of a VllmConfig, with ``section__name`` changed."""
    sections = {
        "parallel_config": {
            "pipeline_parallel_size": 1,
            "decode_context_parallel_size": 1,
            "prefill_context_parallel_size": 1,
        },
        "cache_config": {"enable_prefix_caching": True},
        "model_config": {"runner_type": "generate", "is_hybrid": False, "is_attention_free": False},
    }
    config = {"kv_transfer_config": None, "speculative_config": None}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            sections[section][key] = value
        else:
            config[section] = value
    return Facts(**config, **{name: Facts(**facts) for name, facts in sections.items()})


def test_a_plain_engine_is_taken():
    assert compat.check_config(_config()) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"parallel_config__decode_context_parallel_size": 2}, "context parallelism"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "context parallelism"),
        ({"kv_transfer_config": Facts()}, "KV connector"),
        ({"speculative_config": Facts()}, "speculative decoding"),
        ({"cache_config__enable_prefix_caching": False}, "prefix caching switched off"),
        ({"model_config__is_hybrid": True}, "Mamba layers"),
        ({"model_config__is_attention_free": True}, "Mamba layers"),
        ({"model_config__runner_type": "pooling"}, "pooling"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name_and_says_what_to_do(changes, named):
    with pytest.raises(UnsupportedEngine, match=rf"{named}.*Drop the option, or serve with --dialect none"):
        compat.check_config(_config(**changes))


def test_the_facts_that_the_checks_read_are_a_real_configs():
    from vllm.config import CacheConfig, ModelConfig, ParallelConfig, VllmConfig

    real = {"parallel_config": ParallelConfig, "cache_config": CacheConfig, "model_config": ModelConfig}
    config = _config()
    for section, cls in real.items():
        source = inspect.getsource(cls)
        assert all(re.search(rf"\b{name}\b *[:=(]", source) for name in vars(getattr(config, section)))
    assert set(vars(config)) <= set(VllmConfig.__dataclass_fields__)


@pytest.mark.parametrize("num_blocks", [12, 13])
def test_stitched_joins_run_with_our_workers_and_room_for_a_join(num_blocks):
    """Contexts of up to 70 tokens are 5 blocks of 16; a join needs two such, and a block each for the tail."""
    config = Facts(
        parallel_config=Facts(worker_cls=compat.WORKER),
        cache_config=Facts(block_size=16),
        model_config=Facts(max_model_len=70),
    )
    assert compat.check_stitching(config, num_blocks) is None
    with pytest.raises(
        UnsupportedEngine, match=r"--max-model-len 70 needs 12 KV blocks of 16.*found 11: lower"
    ):
        compat.check_stitching(config, 11)


def test_stitched_joins_do_not_run_with_another_worker():
    config = Facts(parallel_config=Facts(worker_cls="vllm.v1.worker.gpu_worker.Worker"))
    with pytest.raises(
        UnsupportedEngine, match=r"needs --worker-cls .*ForkJoinWorker, found vllm.*gpu_worker"
    ):
        compat.check_stitching(config, 10**6)


def test_the_worker_that_stitched_joins_need_is_where_its_name_says():
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from forkjoin_scheduler.vllm_seam.worker import ForkJoinWorker

    assert resolve_obj_by_qualname(compat.WORKER) is ForkJoinWorker


def test_the_facts_that_stitching_reads_are_a_real_configs():
    from vllm.config import CacheConfig, ModelConfig, ParallelConfig

    for cls, name in (
        (ParallelConfig, "worker_cls"),
        (CacheConfig, "block_size"),
        (ModelConfig, "max_model_len"),
    ):
        assert name in cls.__dataclass_fields__
