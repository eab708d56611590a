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
#: Its specs that are: vLLM's, and for CPUs those of ``forkjoin bench``, which differ in who copies.
SPECS = ("CPUOffloadingSpec", "TieringOffloadingSpec", "HostOffloadingSpec", "HostTieringSpec")
#: Those of them that keep what they have stored in further tiers, too.
TIERED = ("TieringOffloadingSpec", "HostTieringSpec")
#: The further tier that is tested, files in a folder that servers may share, and the keys of its config.
TIER, TIER_KEYS = "fs", ("type", "root_dir", "n_read_threads", "n_write_threads")
#: What may stand in ``kv_connector_extra_config``.
EXTRA_KEYS = ("cpu_bytes_to_use", "offload_prompt_only", "spec_name", "spec_module_path", "secondary_tiers",
              "transfer_steps")  # fmt: skip


def _extra(config: Any) -> dict[str, Any]:
    return dict(config.kv_transfer_config.kv_connector_extra_config or {})


def _has_other_tiers(config: Any) -> bool:
    tiers = _extra(config).get("secondary_tiers", [])
    if not tiers:
        return False
    is_one = isinstance(tiers, list) and len(tiers) == 1 and isinstance(tiers[0], dict)
    return not (is_one and tiers[0].get("type") == TIER and tiers[0].keys() <= set(TIER_KEYS))


def tiers_of(config: Any) -> Any:
    """The further tiers of a KV connector: what they have stored outlives the weights that computed it."""
    return None if config.kv_transfer_config is None else _extra(config).get("secondary_tiers")


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
    (f"a KV connector with secondary_tiers not tested with forks: expected one, of type {TIER}, with no more "
     "than " + ", ".join(TIER_KEYS), _has_other_tiers),
    (f"a KV connector with secondary_tiers that vLLM ignores: expected the spec_name {TIERED[0]} beside them",
     lambda c: bool(tiers_of(c)) and _extra(c).get("spec_name") not in TIERED),
    ("secondary_tiers of a KV connector beside sleep mode or weight updates: files outlive the weights",
     lambda c: bool(tiers_of(c))
     and (c.model_config.enable_sleep_mode or c.weight_transfer_config is not None)),
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
