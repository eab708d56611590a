"""Engine options: what can't be combined with fork/join, and with stitched joins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.errors import UnsupportedEngine
from forkjoin_server.doctor.check import Check, fail, ok
from forkjoin_server.doctor.verdicts import checks

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.cache.estimate import Cache
    from forkjoin_scheduler.vllm_seam.cache.machine import Machine


def engine(vllm_config: Any, wanted: Dialect | None) -> Check:
    """Whether the options go together with fork/join."""
    from forkjoin_scheduler.vllm_seam import compat

    if wanted is None:
        return ok("engine", "any option, for fork/join is off")
    try:
        compat.check_config(vllm_config)
    except UnsupportedEngine as error:
        return fail("engine", str(error))
    return ok("engine", "no option that can't be combined with fork/join")


def options(given: Iterable[str], vllm_config: Any) -> Iterator[Check]:
    """What each option of vLLM's that was given, by its name, means for forks."""
    from forkjoin_scheduler.vllm_seam import compat

    return checks.options(given, vllm_config, compat.REFUSED)


def stitching(vllm_config: Any, cache: Cache, machine: Machine) -> Check:
    """Whether a stitched join can move KV, and has the room to."""
    from forkjoin_scheduler.vllm_seam import compat
    from forkjoin_scheduler.vllm_seam.cache import estimate

    if reason := estimate.stitching_refusal(vllm_config, machine):
        return fail("stitching", reason)
    try:
        compat.check_stitching(vllm_config, cache.num_blocks)
    except UnsupportedEngine as error:
        return fail("stitching", str(error))
    return ok("stitching", f"room to move contexts of {vllm_config.model_config.max_model_len} tokens")
