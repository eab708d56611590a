"""Engine options: what can't be combined with fork/join, and with stitched joins."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from forkjoin_scheduler.errors import DialectError, UnsupportedEngine
from forkjoin_scheduler.settings import Settings
from forkjoin_server.doctor.check import Check, fail, ok, warn
from forkjoin_server.doctor.verdicts import checks

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.cache.estimate import Cache
    from forkjoin_scheduler.vllm_seam.cache.machine import Machine


def engine(vllm_config: Any, settings: Settings) -> Check:
    """Whether the options go together with fork/join."""
    from forkjoin_scheduler.vllm_seam import compat, connectors
    from forkjoin_scheduler.vllm_seam.cache import estimate

    if settings.dialect is None:
        return ok("engine", "any option, for fork/join is off")
    try:
        compat.check_options(settings, vllm_config)
    except (UnsupportedEngine, DialectError) as error:
        return fail("engine", str(error))
    has_connector = vllm_config.kv_transfer_config is not None
    if has_connector and (reason := connectors.block_reason(estimate.cache_groups(vllm_config))):
        return fail("engine", reason)
    return ok("engine", "no option that can't be combined with fork/join")


def options(given: Mapping[str, Any], vllm_config: Any) -> Iterator[Check]:
    """What each option of vLLM's that was given, a value by its name, means for forks."""
    from forkjoin_scheduler.vllm_seam import compat

    return checks.options(given, list(compat.refusals(vllm_config)))


def stitching(vllm_config: Any, cache: Cache | None, machine: Machine) -> Check:
    """Whether a stitched join can move KV, and has the room to; ``cache`` is None where that is not known."""
    from forkjoin_scheduler.vllm_seam import compat
    from forkjoin_scheduler.vllm_seam.cache import estimate

    try:
        reason = estimate.stitching_refusal(vllm_config, machine)
    except NotImplementedError as error:  # vLLM has no kernel for it on this CPU
        return fail("stitching", str(error))
    except Exception as error:  # of whatever kind a model's config raises that lacks what others have
        return warn("stitching", f"can't be worked out for this model ({error})", "start it to see")
    if reason is not None:
        return fail("stitching", reason)
    try:
        compat.check_stitching(vllm_config, sys.maxsize if cache is None else cache.num_blocks)
    except UnsupportedEngine as error:
        return fail("stitching", str(error))
    if cache is None:
        return warn("stitching", "KV can be moved; whether there is room is not known", "start it to see")
    return ok("stitching", f"room to move contexts of {vllm_config.model_config.max_model_len} tokens")
