"""Thread events on vLLM's own channel from the engine core to the front end.

A family's events ride as one more ``EngineCoreOutput`` whose request id is the parent's with a
suffix: vLLM's OutputProcessor drops ids it does not know, ours (``output.py``) reads them.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.engine import EngineCoreOutput

SUFFIX = "#forkjoin"

#: A JSON-like event: ``type`` is forked | tokens | thread_ended | joined | refused | limited |
#: fork_latency | join_latency | progress | family_ended; of no family, but of an engine: load.
Event = dict[str, Any]


def pack(request_id: str, events: list[Event]) -> EngineCoreOutput:
    """The output that carries ``events`` of the family of ``request_id``."""
    return EngineCoreOutput(
        request_id=request_id + SUFFIX, new_token_ids=[], kv_transfer_params={"events": events}
    )


def unpack(output: EngineCoreOutput) -> tuple[str, list[Event]] | None:
    """(request id, events) if ``output`` carries events, else None."""
    if not output.request_id.endswith(SUFFIX) or output.kv_transfer_params is None:
        return None
    return output.request_id.removesuffix(SUFFIX), output.kv_transfer_params["events"]
