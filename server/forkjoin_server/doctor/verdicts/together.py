"""What was run together: pairs of what an engine can have. Others are refused, or nobody tested them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_server.doctor.check import Check, ok, warn

#: Precisions of a KV cache that is not quantised.
_WHOLE = ("auto", "bfloat16", "float16", "float32")
#: AWQ and GPTQ by vLLM's names, which depend on who computes them.
_INT4 = ("awq", "auto_awq", "awq_marlin", "gptq", "auto_gptq", "gptq_marlin")


def _is_recurrent(vllm_config: Any, _: Dialect) -> bool:
    from forkjoin_scheduler.vllm_seam.compat import is_recurrent

    return is_recurrent(vllm_config)


def _has_w8a8(vllm_config: Any, _: Dialect) -> bool:
    model = vllm_config.model_config
    published = getattr(model.hf_config, "quantization_config", None) or {}
    return bool(model.quantization == "compressed-tensors" and published.get("format") == "int-quantized")


def _has_int4(vllm_config: Any, _: Dialect) -> bool:
    return vllm_config.model_config.quantization in _INT4


def _has_other_weights(vllm_config: Any, dialect: Dialect) -> bool:
    is_known = _has_w8a8(vllm_config, dialect) or _has_int4(vllm_config, dialect)
    return vllm_config.model_config.quantization is not None and not is_known


#: What an engine can have, by its name for a reader, and whether one with a config and a dialect has it.
FEATURES: dict[str, Callable[[Any, Dialect], bool]] = {
    "stitched joins": lambda c, dialect: dialect.join.moves_kv,
    "the V2 runner": lambda c, _: c.use_v2_model_runner,
    "async scheduling": lambda c, _: c.scheduler_config.async_scheduling,
    "tensor parallelism": lambda c, _: c.parallel_config.tensor_parallel_size > 1,
    "pipeline parallelism": lambda c, _: c.parallel_config.pipeline_parallel_size > 1,
    "data parallelism": lambda c, _: c.parallel_config.data_parallel_size > 1,
    "drafts": lambda c, _: c.speculative_config is not None,
    "LoRA": lambda c, _: c.lora_config is not None,
    "images": lambda c, _: c.model_config.is_multimodal_model,
    "experts": lambda c, _: c.model_config.is_moe,
    "sliding windows": lambda c, _: bool(c.model_config.get_sliding_window()),
    "MLA": lambda c, _: c.model_config.use_mla,
    "recurrent layers": _is_recurrent,
    "W8A8 weights": _has_w8a8,
    "AWQ or GPTQ weights": _has_int4,
    "weights quantised otherwise": _has_other_weights,
    "quantised KV": lambda c, _: c.cache_config.cache_dtype not in _WHOLE,
    "a KV connector": lambda c, _: c.kv_transfer_config is not None,
}

#: What of that no test has run at all.
UNRUN = ("weights quantised otherwise",)

_MATRIX, _SHAPES, _IMAGES = (f"tests/engine/test_{name}.py" for name in ("matrix", "shapes", "images"))
_OFFLOADED = "tests/engine/test_offloaded_engine.py"
_ADAPTERS = "tests/engine/test_adapters.py"
#: With what each was run, and where.
RUN: dict[str, dict[str, str]] = {
    "stitched joins": {
        "the V2 runner": _MATRIX, "async scheduling": _MATRIX, "tensor parallelism": _MATRIX,
        "drafts": "tests/engine/test_speculation.py", "images": "tests/engine/test_images_stitched.py",
        "experts": _SHAPES, "sliding windows": _SHAPES, "MLA": _SHAPES, "W8A8 weights": _SHAPES,
        "quantised KV": _SHAPES, "LoRA": _ADAPTERS,
    },
    "the V2 runner": {
        "async scheduling": _MATRIX, "drafts": "tests/engine/test_speculation.py", "images": _IMAGES,
        "sliding windows": _SHAPES, "experts": _SHAPES, "a KV connector": _OFFLOADED, "LoRA": _ADAPTERS,
        "W8A8 weights": _SHAPES,
    },
    "async scheduling": {
        "tensor parallelism": _MATRIX, "drafts": "tests/engine/test_speculation.py", "images": _IMAGES,
        "experts": _SHAPES, "sliding windows": _SHAPES, "recurrent layers": "tests/engine/test_hybrid.py",
        "pipeline parallelism": "tests/engine/test_pipeline.py",
        "a KV connector": _OFFLOADED, "LoRA": _ADAPTERS, "W8A8 weights": _SHAPES,
    },
    "tensor parallelism": {"LoRA": _ADAPTERS},
    "drafts": {"LoRA": "tests/engine/test_variants.py", "a KV connector": "tests/engine/test_offloaded.py"},
    "experts": {"sliding windows": _SHAPES, "MLA": _SHAPES, "recurrent layers": _SHAPES},
}  # fmt: skip


def is_run(one: str, other: str) -> bool:
    """Whether a test runs the two features together."""
    return other in RUN.get(one, ()) or one in RUN.get(other, ())


def check(vllm_config: Any, dialect: Dialect) -> Check:
    """Which of an engine's features no test has run, or not together. Expects options that none refuses."""
    here = [name for name, has_it in FEATURES.items() if has_it(vllm_config, dialect)]
    unrun = [name for name in here if name in UNRUN]
    pairs = [
        f"{one} and {other}"
        for one, other in combinations(here, 2)
        if not is_run(one, other) and not {one, other} & set(unrun)
    ]
    said = ["no test has run " + ", ".join(unrun)] if unrun else []
    said += [f"no test has run together {'; '.join(pairs)}"] if pairs else []
    if said:
        return warn("together", "; ".join(said), "compare answers with those of --dialect none")
    return ok(
        "together", f"{', '.join(here) or 'nothing that needs a test of its own'}: run together in tests"
    )
