"""Which KV connectors run beside forks, and set up how: as they are tested, and no other way.

A connector stores and loads KV by the hashes of tokens. What it takes for those, when it asks, and who copies
depends on how it is set up, so what no test has run is refused at start, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forkjoin_scheduler.vllm_seam.mends.drafting import WITHOUT_KV

#: The KV connector that is tested.
CONNECTOR = "OffloadingConnector"
#: Its specs that are: vLLM's, and ours for CPUs, which the tests and ``forkjoin bench`` name.
SPECS = ("CPUOffloadingSpec", "HostOffloadingSpec")
#: What may stand in ``kv_connector_extra_config``.
EXTRA_KEYS = ("cpu_bytes_to_use", "offload_prompt_only", "spec_name", "spec_module_path", "transfer_steps")


def _extra(config: Any) -> dict[str, Any]:
    return dict(config.kv_transfer_config.kv_connector_extra_config or {})


def _is_another(config: Any) -> bool:
    connects = config.kv_transfer_config
    is_vllms = connects.kv_connector == CONNECTOR and connects.kv_connector_module_path is None
    return not (is_vllms and connects.kv_role == "kv_both")


#: (what is refused beside a KV connector and why, whether a VllmConfig with one has it)
_BESIDE: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    (f"a KV connector not tested with forks: expected {CONNECTOR}, with kv_role kv_both", _is_another),
    ("a KV connector with pipeline, tensor or data parallelism: loads of several workers are not tested",
     lambda c: max(c.parallel_config.pipeline_parallel_size, c.parallel_config.tensor_parallel_size,
                   c.parallel_config.data_parallel_size) > 1),
    (f"a KV connector with a spec_name not tested with forks: expected {' or '.join(SPECS)}",
     lambda c: _extra(c).get("spec_name", SPECS[0]) not in SPECS),
    ("a KV connector with more in kv_connector_extra_config than is tested: expected "
     + ", ".join(EXTRA_KEYS), lambda c: bool(_extra(c).keys() - set(EXTRA_KEYS))),
    ("a KV connector with kv_load_failure_policy other than fail: families that lose a load are not tested",
     lambda c: c.kv_transfer_config.kv_load_failure_policy != "fail"),
    ("a KV connector with a drafter that has KV of its own: whose of the two is stored is not tested",
     lambda c: c.speculative_config is not None and c.speculative_config.method not in WITHOUT_KV),
    ("a KV connector with LoRA: loads of adapters' KV are not tested", lambda c: c.lora_config is not None),
    ("a KV connector with images or audio: loads of their KV are not tested",
     lambda c: c.model_config.is_multimodal_model),
    ("a KV connector with --prefix-cache-retention-interval: what is stored then is not tested",
     lambda c: bool(c.cache_config.prefix_cache_retention_interval)),
)  # fmt: skip


def _beside(has_it: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda config: config.kv_transfer_config is not None and has_it(config)


_FOUND = (
    "(found {c.kv_transfer_config.kv_connector}, kv_role {c.kv_transfer_config.kv_role}, "
    "kv_load_failure_policy {c.kv_transfer_config.kv_load_failure_policy})"
)
#: The same, of any VllmConfig ``c``.
REFUSED = tuple((f"{reason} {_FOUND}", _beside(has_it)) for reason, has_it in _BESIDE)


def block_reason(kv_cache_config: Any) -> str | None:
    """Why a KV cache can't be given to a connector beside forks; None where it can."""
    found = [type(group.kv_cache_spec).__name__ for group in kv_cache_config.kv_cache_groups]
    if found == ["FullAttentionSpec"]:
        return None
    return (
        f"beside a KV connector, fork/join expects one KV cache of full attention, found {', '.join(found)}: "
        "what is stored of windows and other layouts is not tested with forks. Drop --kv-transfer-config "
        "and --kv-offloading-size, or serve with --dialect none"
    )
