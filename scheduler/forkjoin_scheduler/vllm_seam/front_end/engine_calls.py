"""What front ends ask of engine cores beside vLLM's own calls.

Patch: ``vllm.v1.engine.core.EngineCore`` has three more methods, ``cancel_thread``,
``forkjoin_release`` and ``forkjoin_overview``.
Symptom without it: a front end can call methods of an engine core only, and none of them hands a call on
to the scheduler and its answer back.
Upstream: there is no such method. Remove when there is one.
"""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.machine.cancelling import UNKNOWN


def answer_front_ends() -> None:
    """Let engine cores answer what ``forkjoin serve`` asks them. They do so between two steps."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, "cancel_thread", _cancel_thread)  # noqa: B010
    setattr(EngineCore, "forkjoin_release", _release)  # noqa: B010
    setattr(EngineCore, "forkjoin_overview", _overview)  # noqa: B010


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
