"""Engine options that can't be combined with fork/join are refused, naming them."""

from __future__ import annotations

import inspect
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Facts

import pytest
import torch
from packaging.requirements import Requirement
from vllm.config import CompilationMode
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.kv_cache_interface import (
    CircularBufferSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    RSWASpec,
    SinkFullAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import DialectError, UnsupportedEngine
from forkjoin_scheduler.settings import Settings
from forkjoin_scheduler.vllm_seam import compat, connectors


def _config(**changes):
    """What the checks read of a VllmConfig, with ``section__name`` changed."""
    sections = {
        "parallel_config": {
            "pipeline_parallel_size": 1,
            "tensor_parallel_size": 1,
            "data_parallel_size": 1,
            "decode_context_parallel_size": 1,
            "prefill_context_parallel_size": 1,
        },
        "cache_config": {
            "enable_prefix_caching": True,
            "use_replayssm": False,
            "prefix_cache_retention_interval": 0,
        },
        "device_config": {"device_type": "cpu"},
        "compilation_config": {"mode": CompilationMode.VLLM_COMPILE},
        "model_config": {
            "runner_type": "generate",
            "is_hybrid": False,
            "is_attention_free": False,
            "is_diffusion": False,
            "is_multimodal_model": False,
            "architecture": "LlamaForCausalLM",
            "enable_sleep_mode": False,
            "return_sampling_mask": False,
        },
    }
    config = {
        "kv_transfer_config": None,
        "speculative_config": None,
        "lora_config": None,
        "aux_output_config": Facts(enabled=False),
        "weight_transfer_config": None,
        "use_v2_model_runner": False,
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            sections[section][key] = value
        else:
            config[section] = value
    return Facts(**config, **{name: Facts(**facts) for name, facts in sections.items()})


def connects(name="OffloadingConnector", *, module_path=None, role="kv_both", policy="fail", **extra):
    """What makes a config of one with a KV connector. ``extra``: its ``kv_connector_extra_config``."""
    connector = Facts(
        kv_connector=name,
        kv_connector_module_path=module_path,
        kv_role=role,
        kv_load_failure_policy=policy,
        kv_connector_extra_config=extra,
    )
    return {"kv_transfer_config": connector}


FILES = {"type": "fs", "root_dir": "kv"}


def tiers(*tiers):
    """The same, of one that keeps what it stores in ``tiers``, too."""
    return connects(spec_name="TieringOffloadingSpec", secondary_tiers=list(tiers))


def drafts(method, *, num_ahead=1, parallel_drafting=False, judged_by="standard"):
    """What makes a config of one with speculative decoding."""
    speculative = Facts(method=method, parallel_drafting=parallel_drafting, rejection_sample_method=judged_by)
    return {"speculative_config": speculative, "num_prefill_lookahead_tokens": num_ahead}


STAGES = {"parallel_config__pipeline_parallel_size": 2}
EAGER = {"compilation_config__mode": CompilationMode.NONE}
DRAFTED = [drafts(m) for m in ("ngram", "suffix", "draft_model", "eagle", "eagle3", "mimo_mtp")]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_config__is_hybrid": True},
        {"model_config__is_attention_free": True},
        {"use_v2_model_runner": True},
        EAGER,
        connects(),
        connects(cpu_bytes_to_use=1 << 30, offload_prompt_only=False),
        connects(spec_name="HostOffloadingSpec", spec_module_path="forkjoin_bench.vllm_seam.host_offloading"),
        connects(spec_name="TieringOffloadingSpec", secondary_tiers=[FILES | {"n_read_threads": 1}]),
        connects() | drafts("ngram"),
        STAGES,
        STAGES | EAGER | {"device_config__device_type": "cuda"},
        *DRAFTED,
        drafts("eagle", judged_by="block"),
    ],
)
def test_a_plain_engine_is_taken_and_a_recurrent_one_and_one_with_a_tested_drafter(changes):
    assert compat.check_config(_config(**changes)) is None


@pytest.mark.parametrize("layers", ["is_hybrid", "is_attention_free"])
@pytest.mark.parametrize("changes", [STAGES, connects(), {"use_v2_model_runner": True}])
def test_what_is_not_tested_with_recurrent_layers_is_refused_by_name(changes, layers):
    recurrent = _config(**changes, **{f"model_config__{layers}": True})
    with pytest.raises(UnsupportedEngine, match=r"with Mamba or linear attention layers .*: not tested"):
        compat.check_config(recurrent)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (STAGES | drafts("ngram"), "pipeline parallelism together with speculative decoding"),
        (STAGES | EAGER, "pipeline parallelism with --enforce-eager on a CPU"),
        ({"parallel_config__decode_context_parallel_size": 2}, "context parallelism"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "context parallelism"),
        ({"aux_output_config": Facts(enabled=True)}, "--enable-return-routed-experts"),
        ({"model_config__return_sampling_mask": True}, "--return-sampling-mask"),
        (connects("NixlConnector"), "KV connector"),
        (connects(module_path="mine"), "KV connector"),
        (connects(role="kv_consumer"), "KV connector"),
        (STAGES | connects(), "KV connector with pipeline, tensor or data parallelism"),
        ({"parallel_config__tensor_parallel_size": 2} | connects(), "with pipeline, tensor or data"),
        ({"parallel_config__data_parallel_size": 2} | connects(), "with pipeline, tensor or data"),
        (connects(spec_name="MineSpec", spec_module_path="mine"), "expected CPUOffloadingSpec or Tiering"),
        (tiers({"type": "p2p"}), "expected one, of type fs"),
        (tiers(FILES, FILES), "expected one, of type fs"),
        (tiers(FILES | {"backpressure": {}}), "no more than type, root_dir"),
        (connects(spec_name="TieringOffloadingSpec", secondary_tiers=FILES), "expected one, of type fs"),
        (connects(secondary_tiers=[FILES]), "secondary_tiers that vLLM ignores"),
        (tiers(FILES) | {"model_config__enable_sleep_mode": True}, "beside sleep mode or weight updates"),
        (tiers(FILES) | {"weight_transfer_config": Facts()}, "beside sleep mode or weight updates"),
        (connects(blocks_per_chunk=4), "more in kv_connector_extra_config than is tested"),
        (connects(policy="recompute"), "kv_load_failure_policy other than fail"),
        (connects() | drafts("eagle"), "KV connector with a drafter that has KV of its own"),
        (connects() | {"lora_config": Facts()}, "KV connector with LoRA"),
        (connects() | {"model_config__is_multimodal_model": True}, "KV connector with images"),
        (connects() | {"cache_config__prefix_cache_retention_interval": 64}, "retention-interval"),
        (drafts("medusa"), "speculative decoding by a method not tested"),
        (drafts("ngram_gpu"), "speculative decoding by a method not tested"),
        (drafts("eagle", parallel_drafting=True), "speculative decoding by a method not tested"),
        (drafts("mimo_mtp", num_ahead=3), "speculative decoding by a method not tested"),
        (drafts("eagle", judged_by="fly"), "a lossy rejection_sample_method"),
        (drafts("ngram", judged_by="synthetic"), "a lossy rejection_sample_method"),
        ({"cache_config__enable_prefix_caching": False}, "prefix caching switched off"),
        (drafts("ngram") | {"model_config__is_hybrid": True}, "speculative decoding with Mamba"),
        (drafts("ngram") | {"model_config__is_attention_free": True}, "speculative decoding with Mamba"),
        ({"cache_config__use_replayssm": True, "model_config__is_hybrid": True}, "--use-replayssm"),
        ({"model_config__runner_type": "pooling"}, "pooling"),
        ({"model_config__is_diffusion": True}, "diffusion"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name_and_says_what_to_do(changes, named):
    with pytest.raises(UnsupportedEngine, match=rf"{named}.*Drop the option, or serve with --dialect none"):
        compat.check_config(_config(**changes))


def test_what_is_refused_says_what_was_found():
    assert all("(found " in reason and "{c." in reason for reason, _ in compat.REFUSED)
    drafted = _config(**drafts("medusa", num_ahead=3))
    with pytest.raises(UnsupportedEngine, match="found medusa, which reads 3 tokens ahead"):
        compat.check_config(drafted)


def test_the_facts_that_the_checks_read_are_a_real_configs():
    from vllm.config import (
        CacheConfig,
        CompilationConfig,
        DeviceConfig,
        ModelConfig,
        ParallelConfig,
        VllmConfig,
    )

    real = {
        "parallel_config": ParallelConfig,
        "cache_config": CacheConfig,
        "model_config": ModelConfig,
        "device_config": DeviceConfig,
        "compilation_config": CompilationConfig,
    }
    config = _config()
    for section, cls in real.items():
        source = inspect.getsource(cls)
        assert all(re.search(rf"\b{name}\b *[:=(]", source) for name in vars(getattr(config, section)))
    assert vars(config).keys() <= VllmConfig.__dataclass_fields__.keys() | {"use_v2_model_runner"}
    assert isinstance(VllmConfig.use_v2_model_runner, property)


def test_path_embeddings_are_read_by_whole_batches_only_and_each_path_has_one():
    model, spoken = Facts(hf_config=Facts(max_segments=5)), load("parathinker")
    config = Facts(
        model_config=model, parallel_config=Facts(use_ubatching=False, enable_dbo=False, ubatch_size=2)
    )
    compat.check_paths(spoken, config)
    config.parallel_config.use_ubatching = True
    compat.check_paths(load("multiverse"), config)
    with pytest.raises(
        UnsupportedEngine, match=r"with --enable-dbo or a --ubatch-size \(found False and 2\)"
    ):
        compat.check_paths(spoken, config)
    model.hf_config.max_segments = 4
    with pytest.raises(DialectError, match=r"a width of at most 3, .* got 4: lower the width"):
        compat.check_paths(spoken, config)


@pytest.mark.parametrize("num_blocks", [12, 13])
def test_stitched_joins_run_with_our_workers_and_room_for_a_join(num_blocks):
    """Contexts of up to 70 tokens are 5 blocks of 16; a join needs two such, and a block each for the tail."""
    config = Facts(
        parallel_config=Facts(worker_cls=compat.WORKER, pipeline_parallel_size=1),
        cache_config=Facts(block_size=16),
        model_config=Facts(max_model_len=70),
        kv_transfer_config=None,
    )
    assert compat.check_stitching(config, num_blocks) is None
    with pytest.raises(
        UnsupportedEngine, match=r"--max-model-len 70 needs 12 KV blocks of 16.*found 11: lower"
    ):
        compat.check_stitching(config, 11)


def test_stitched_joins_do_not_run_with_another_worker():
    parallel = Facts(worker_cls="vllm.v1.worker.gpu_worker.Worker", pipeline_parallel_size=1)
    config = Facts(parallel_config=parallel, kv_transfer_config=None)
    with pytest.raises(
        UnsupportedEngine, match=r"needs --worker-cls .*ForkJoinWorker, found vllm.*gpu_worker"
    ):
        compat.check_stitching(config, 10**6)


def test_stitched_kv_is_not_given_to_a_connector():
    config = Facts(parallel_config=Facts(worker_cls=compat.WORKER, pipeline_parallel_size=1), **connects())
    with pytest.raises(
        UnsupportedEngine, match=r"can't be combined with a KV connector.*joins by prefilling"
    ):
        compat.check_stitching(config, 10**6)


def test_stitched_joins_do_not_run_in_stages():
    config = Facts(parallel_config=Facts(worker_cls=compat.WORKER, pipeline_parallel_size=2))
    with pytest.raises(UnsupportedEngine, match=r"with --pipeline-parallel-size.*joins by prefilling"):
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


# ---- the KV cache --------------------------------------------------------------------------

HEADS = {"block_size": 16, "num_kv_heads": 2, "head_size": 8, "dtype": torch.float32}


def _cache(*specs, **of_group):
    return KVCacheConfig(9, [], [KVCacheGroupSpec(["layer.0"], spec, **of_group) for spec in specs])


def _uniform(*specs):
    return UniformTypeKVCacheSpecs(
        block_size=16, kv_cache_specs={f"layer.{i}": s for i, s in enumerate(specs)}
    )


FULL = FullAttentionSpec(**HEADS)
WINDOW = SlidingWindowSpec(**HEADS, sliding_window=32)


STATE = MambaSpec(
    block_size=16, shapes=((8, 4), (4, 4)), dtypes=(torch.float32, torch.float32), mamba_cache_mode="align"
)
MAMBA1 = replace(STATE, mamba_type=MambaAttentionBackendEnum.MAMBA1)
DELTA = replace(STATE, mamba_type=MambaAttentionBackendEnum.GDN_ATTN)
CONVOLUTION = replace(STATE, mamba_type=MambaAttentionBackendEnum.SHORT_CONV)
#: What the config of a model with gated DeltaNet has, and one of a model with KDA has not.
WITH_DELTA = Facts(linear_key_head_dim=64)


@pytest.mark.parametrize(
    "specs",
    [
        [FULL],
        [FULL, WINDOW],
        [_uniform(FULL, FullAttentionSpec(**HEADS))],
        [FULL, STATE],
        [STATE],
        [FULL, DELTA],
        [FULL, CONVOLUTION],
    ],
)
def test_kv_caches_of_one_state_a_token_are_taken_and_recurrent_states(specs):
    assert compat.check_cache(_cache(*specs), WITH_DELTA) is None


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (MLAAttentionSpec(**HEADS, tokens_per_state=4), "MLAAttentionSpec of layer.0 with 4 tokens a state"),
        (RSWASpec(**HEADS, rswa_window=32), "RSWASpec of layer.0"),
        (CircularBufferSpec(**HEADS), "CircularBufferSpec of layer.0"),
        (SlidingWindowMLASpec(**HEADS, sliding_window=32), "SlidingWindowMLASpec of layer.0"),
        (SinkFullAttentionSpec(**HEADS, sink_len=16), "SinkFullAttentionSpec of layer.0"),
        (MAMBA1, "MambaSpec of layer.0 of the kind MAMBA1"),
        (DELTA, "MambaSpec of layer.0 of the kind KDA"),
        (replace(STATE, mamba_cache_mode="none"), "MambaSpec of layer.0 .*--mamba-cache-mode none"),
        (
            _uniform(FULL, MLAAttentionSpec(**HEADS, tokens_per_state=2)),
            "MLAAttentionSpec .* 2 tokens a state",
        ),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, KVCacheSpec) else "",
)
def test_every_other_kv_cache_is_refused_by_the_name_of_its_spec(spec, named):
    with pytest.raises(UnsupportedEngine, match=rf"found {named}.*serve with --dialect none"):
        compat.check_cache(_cache(FULL, spec), Facts())


def test_a_kv_cache_in_the_hosts_memory_is_refused():
    with pytest.raises(UnsupportedEngine, match=r"found FullAttentionSpec of layer\.0 in the host's memory"):
        compat.check_cache(_cache(FULL, host_resident=True), Facts())


@pytest.mark.parametrize(("specs", "found"), [([FULL], None), ([FULL, WINDOW], "SlidingWindowSpec")])
def test_a_connector_takes_one_kv_cache_of_full_attention(specs, found):
    reason = connectors.block_reason(_cache(*specs))
    assert reason is None if found is None else f"full attention, found FullAttentionSpec, {found}" in reason


def test_the_specs_that_are_known_are_vllms():
    from vllm.v1 import kv_cache_interface

    assert all(hasattr(kv_cache_interface, name) for name in (*compat.KNOWN_SPECS, compat.RECURRENT_SPEC))
    assert set(compat.RECURRENT_KINDS) <= set(MambaAttentionBackendEnum.__members__)


# ---- the front end -------------------------------------------------------------------------


def test_vllms_rust_front_end_is_refused_whatever_the_dialect(monkeypatch):
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    for check in (compat.check_front_end, lambda: compat.check_config(_config())):
        with pytest.raises(UnsupportedEngine, match=r"found VLLM_USE_RUST_FRONTEND=1.*Unset"):
            check()
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "0")
    assert compat.check_front_end() is None


def test_a_server_with_vllms_rust_front_end_does_not_start(monkeypatch):
    from forkjoin_server.vllm_seam.start import serving

    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    monkeypatch.setattr(serving, "exit_at_a_signal", lambda: None)
    monkeypatch.setattr(serving.redact, "hide_in_logs", lambda: None)
    with pytest.raises(UnsupportedEngine, match="VLLM_USE_RUST_FRONTEND"):
        serving.run_serve(Facts())


ROOT = Path(__file__).parents[4]


def test_the_extras_take_the_versions_that_we_run_on_and_no_others():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, versions in [("cuda", compat.SUPPORTED), ("cpu", compat.TESTED)]:
        (requirement,) = map(Requirement, extras[extra])
        known = ("0.31.", "0.32.", "0.33.", "0.34.")
        assert tuple(v for v in known if f"{v}0" in requirement.specifier) == versions


def test_the_next_vllm_is_one_that_we_run_on_and_not_taken_for_tested():
    (version,) = re.findall(r"^next=(.*)$", (ROOT / "scripts/install-next").read_text(), re.MULTILINE)
    assert version.startswith(compat.SUPPORTED)
    assert not version.startswith(compat.TESTED)


@pytest.mark.parametrize(
    ("dialect", "setting", "is_cuda", "worker"),
    [
        ("threadweaver", "auto", True, compat.GROUPING_WORKER),
        ("threadweaver", "100", True, compat.GROUPING_WORKER),
        ("threadweaver", "auto", False, None),
        ("threadweaver", "order", True, None),
        ("threadweaver", "off", True, None),
        ("multiverse", "off", False, compat.WORKER),
    ],
)
def test_a_worker_of_ours_is_taken_where_it_does_something(monkeypatch, dialect, setting, is_cuda, worker):
    monkeypatch.setattr(compat, "current_platform", Facts(is_cuda=lambda: is_cuda))
    assert compat.worker_of(Settings.of(load(dialect), {}, grouped_attention=setting)) == worker


def test_the_worker_that_groups_is_there():
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from forkjoin_scheduler.vllm_seam.grouped.runner import GroupingWorker
    from forkjoin_scheduler.vllm_seam.worker import ForkJoinWorker

    assert resolve_obj_by_qualname(compat.GROUPING_WORKER) is GroupingWorker
    assert issubclass(ForkJoinWorker, GroupingWorker)


@pytest.mark.parametrize("value", ["on", "-1", "1.5", "", "²"])
def test_a_setting_of_grouped_attention_that_cant_be_says_what_can(value):
    with pytest.raises(ValueError, match="expected auto, order, off or a number of tokens"):
        Settings.of(load("threadweaver"), {}, grouped_attention=value)
