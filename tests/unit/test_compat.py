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
        "model_config": {"runner_type": "generate"},
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
