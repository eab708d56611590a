"""Thread events on vLLM's own channel from the engine core to the front end.

A family's events ride as one more ``EngineCoreOutput`` whose request id is the parent's with a
suffix: vLLM's OutputProcessor drops ids it does not know, ours (``output.py``) reads them.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from vllm.v1.engine import EngineCoreOutput

SUFFIX = "#forkjoin"

#: A JSON-like event: ``type`` is forked | threads_started | tokens | waiting | thread_ended | joined_ahead |
#: joined | voted | refused | limited | drafted | fork_latency | join_latency | progress | family_ended |
#: internal_error; of no family, but of an engine: load | admission.
Event = dict[str, Any]


class Told(NamedTuple):
    """Events of the family of ``request_id``, and when they left the engine core (ns since the epoch).

    ``engine`` is the number of that engine core, from 0.
    """

    request_id: str
    events: list[Event]
    time_ns: int
    engine: int


def pack(request_id: str, events: list[Event], engine: int) -> EngineCoreOutput:
    """The output that carries ``events`` of the family of ``request_id``, which happened in this step."""
    return EngineCoreOutput(
        request_id=request_id + SUFFIX,
        new_token_ids=[],
        kv_transfer_params={"events": events, "time_ns": time.time_ns(), "engine": engine},
    )


def unpack(output: EngineCoreOutput) -> Told | None:
    """What ``output`` tells, None if it is one of vLLM's."""
    if not output.request_id.endswith(SUFFIX) or output.kv_transfer_params is None:
        return None
    told = output.kv_transfer_params
    return Told(output.request_id.removesuffix(SUFFIX), told["events"], told["time_ns"], told["engine"])
