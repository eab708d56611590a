"""Thread events on vLLM's own channel from the engine core to the front end.

A family's events ride as one more ``EngineCoreOutput`` whose request id is the parent's with a
suffix: vLLM's OutputProcessor drops ids it does not know, ours (``output.py``) reads them. They are
bytes in its ``kv_transfer_params``: vLLM decodes an output by its class, which it names itself and which
has no field for others, and this is the one whose content it does not look at.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec
from vllm.v1.engine import EngineCoreOutput

from forkjoin_scheduler.publish.events import Event

SUFFIX = "#forkjoin"
_EVENTS = "forkjoin_events"

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[Event])


class EventBatch(NamedTuple):
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
        kv_transfer_params={
            _EVENTS: _ENCODER.encode(events),
            "time_ns": time.time_ns(),
            "engine": engine,
        },
    )


def unpack(output: EngineCoreOutput) -> EventBatch | None:
    """The events in ``output``, None if it is one of vLLM's."""
    if not output.request_id.endswith(SUFFIX) or output.kv_transfer_params is None:
        return None
    told = output.kv_transfer_params
    events = _DECODER.decode(told[_EVENTS])
    return EventBatch(output.request_id.removesuffix(SUFFIX), events, told["time_ns"], told["engine"])
