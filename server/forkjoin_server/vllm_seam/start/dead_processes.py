"""A server one of whose processes has died."""

from __future__ import annotations

from typing import Any

from forkjoin_server.operate.orphans import FAILURE_S, end_within
from forkjoin_server.vllm_seam.patching import put_in_place


def bound_failures() -> None:
    """End a server of several API servers soon after one of its processes has died.

    Patch: ``wait_for_completion_or_failure``, which raises then, also starts a clock.
    Symptom without it: vLLM asks the other processes to end, kind by kind, and gives each kind 5 s. So a
    server with requests in flight takes 15 s to end, in which clients are connected to half of one.
    Upstream: there is no time for all of them together. Remove when there is.
    """
    from vllm.entrypoints.cli import serve

    original = serve.wait_for_completion_or_failure

    def wait_for_completion_or_failure(*args: Any, **kwargs: Any) -> None:
        try:
            original(*args, **kwargs)
        except Exception:
            end_within(FAILURE_S)
            raise

    put_in_place(serve, wait_for_completion_or_failure)
