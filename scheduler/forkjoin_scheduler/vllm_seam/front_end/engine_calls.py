"""What front ends ask of engine cores beside vLLM's own calls, and what schedulers hear of these.

Patch: ``vllm.v1.engine.core.EngineCore`` has three more methods, ``cancel_thread``,
``forkjoin_release`` and ``forkjoin_overview``.
Symptom without it: a front end can call methods of an engine core only, and none of them hands a call on
to the scheduler and its answer back.
Upstream: there is no such method. Remove when there is one.

Patch: its ``set_weight_version`` and ``collective_rpc`` tell its scheduler of new weights, and name those
that are loaded without a name.
Symptom without it: the prefix cache and kept answers give requests KV of the old weights, and trees can't
say which weights sampled what.
Upstream: the scheduler does not hear of it. Remove when it does.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from forkjoin_scheduler.machine.cancelling import UNKNOWN

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.kept.new_weights import NewWeights

#: Calls of workers after which they have other weights.
_LOADS = ("finish_weight_update", "reload_weights")


def answer_front_ends() -> None:
    """Let engine cores answer what ``forkjoin serve`` asks them. They do so between two steps."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, "cancel_thread", _cancel_thread)  # noqa: B010
    setattr(EngineCore, "forkjoin_release", _release)  # noqa: B010
    setattr(EngineCore, "forkjoin_overview", _overview)  # noqa: B010
    set_version, rpc = EngineCore.set_weight_version, EngineCore.collective_rpc
    if getattr(set_version, "tells", False):
        return  # this process has been here before

    @wraps(set_version)
    def set_weight_version(core: Any, weight_version: str) -> None:
        new_weights = _new_weights(core)
        if new_weights is not None and weight_version != core.get_weight_version():
            new_weights.check()
        set_version(core, weight_version)
        if new_weights is not None and new_weights.weights.name(weight_version):
            _take(core, new_weights)

    @wraps(rpc)  # vLLM counts the parameters of what a front end calls
    def collective_rpc(core: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        new_weights = _new_weights(core) if method in _LOADS else None
        if new_weights is None:
            return rpc(core, method, *args, **kwargs)
        new_weights.check()
        told = rpc(core, method, *args, **kwargs)
        set_version(core, new_weights.weights.load())
        _take(core, new_weights)
        return told

    setattr(set_weight_version, "tells", True)  # noqa: B010
    setattr(EngineCore, "set_weight_version", set_weight_version)  # noqa: B010
    setattr(EngineCore, "collective_rpc", collective_rpc)  # noqa: B010


def _new_weights(core: Any) -> NewWeights | None:
    """Who wants to hear of them; vLLM's own scheduler does not."""
    found: NewWeights | None = getattr(core.scheduler, "new_weights", None)
    return found


def _take(core: Any, new_weights: NewWeights) -> None:
    """The workers have other weights: forget what old ones have made of images, too."""
    try:
        new_weights.take()
    finally:
        if core.vllm_config.model_config.is_multimodal_model:
            core.reset_encoder_cache()


def _cancel_thread(core: Any, key: str, index: int, tenant: str) -> str:
    """See ``Cancelling.ask``; without fork/join there are no threads."""
    cancel = getattr(core.scheduler, "cancel_thread", None)
    return UNKNOWN if cancel is None else str(cancel(key, index, tenant))


def _release(core: Any, name: str, tenant: str) -> str:
    """See ``Leasing.release``. Front ends ask only where requests fork."""
    return str(core.scheduler.release_kept(name, tenant))


def _overview(core: Any) -> dict[str, Any]:
    """See ``Overview.now``. Front ends ask only where requests fork."""
    seen: dict[str, Any] = core.scheduler.overview()
    return seen
