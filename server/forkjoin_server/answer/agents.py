"""Threads on ``/v1/responses`` as OpenAI's beta for several agents shows them.

A request asks for it by ``multi_agent: {"enabled": true}``. A fork is a ``multi_agent_call`` ``spawn_agent``
for each thread, a join one ``wait_agent``, each followed by its output. A thread's text is a ``reasoning``
item. Each item and event names its ``agent``: ``/root`` is the answer, ``/root/2`` its second thread,
``/root/2/1`` the first thread of that.

Invariant (pinned by tests): the SDK's classes of the beta know every field that is written here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forkjoin_scheduler.dialects.limits import MAX_COUNT
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.wrong_fields import place, sentence
from forkjoin_server.answer.responses import ResponseThreads, Slot
from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.asgi import Json
from forkjoin_server.routes import RESPONSES

FIELD = "multi_agent"
ROOT = "/root"
_SHOWN = "include_threads"
_CALLS = ("multi_agent_call", "multi_agent_call_output")


class MultiAgent(BaseModel):
    """The field ``multi_agent`` of a request for a response, as OpenAI has it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    enabled: bool = Field(
        default=False,
        description="Whether threads are shown as agents, by `multi_agent_call` items and `agent` names.",
    )
    max_concurrent_subagents: int | None = Field(
        default=None,
        ge=1,
        le=MAX_COUNT,
        description="Threads that run at the same time, like `forkjoin.max_threads_running`.",
    )


def take(body: Json, path: str) -> tuple[Json, Callable[[ThreadLog], AgentThreads] | None]:
    """``body`` in fork/join's own words, and what shows its threads as agents, None if nothing is to.

    Raises BadRequestOptions for a field that is wrong.
    """
    if path != RESPONSES or FIELD not in body:
        return body, None
    given, body = body[FIELD], {key: value for key, value in body.items() if key != FIELD}
    try:
        asked = MultiAgent.model_validate({} if given is None else given)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequestOptions(
            f"{place(FIELD, first['loc'])}: {sentence(first)}: expected enabled, and "
            "max_concurrent_subagents or none",
            field=FIELD,
        ) from error
    if not asked.enabled:
        return body, None
    if body.get("background"):
        message = f"{FIELD}: expected background = false beside it, got true: drop one"
        raise BadRequestOptions(message, field=FIELD)
    own = body.get("forkjoin")
    if own is not None and not isinstance(own, dict):
        return body, None  # it is refused for that
    own, most = own or {}, asked.max_concurrent_subagents
    limit = {} if most is None else {"max_threads_running": most}
    in_streams = body.get("stream_options")
    wishes = [own, in_streams if isinstance(in_streams, dict) else {}]
    present = partial(AgentThreads, has_extras=any(wish.get(_SHOWN) is True for wish in wishes))
    if _SHOWN in wishes[1]:
        body = body | {"stream_options": wishes[1] | {_SHOWN: True}}
    return body | {"forkjoin": {**limit, **own, _SHOWN: True}}, present


def without_calls(items: list[object]) -> list[object]:
    """``items`` of a request's ``input`` without calls that a client gives back, which vLLM does not know."""
    return [item for item in items if not (isinstance(item, dict) and item.get("type") in _CALLS)]


class AgentThreads(ResponseThreads):
    """Shows entries as the events of calls and of their agents' items.

    ``has_extras``: the client asked for ``include_threads`` too, and gets what no class of the SDK knows.
    """

    def __init__(self, log: ThreadLog, *, has_extras: bool) -> None:
        super().__init__(log)
        self._has_extras = has_extras
        self._calls: dict[Slot, Json] = {}
        self._names: dict[int, str] = {}
        #: The first thread of each fork whose join was emitted.
        self._joined: set[int] = set()

    def pass_on(self, chunk: Json) -> list[Json]:
        if "item" in chunk:
            chunk = chunk | {"item": _of(ROOT, chunk["item"])}
        if isinstance(chunk.get("response"), dict):
            chunk = chunk | {"response": self._response(chunk["response"])}
        return [event if "agent" in event else _of(ROOT, event) for event in super().pass_on(chunk)]

    def show(self, entries: list[Json]) -> list[Json]:
        events: list[Json] = []
        for entry in entries:
            if "id" in entry:
                events += self._say(self._spawn(entry["index"]))
            events += super().show([entry])
            if "finish_reason" in entry and (fork := self._ended_fork(entry["index"])):
                self._joined.add(fork[0])
                events += self._say(self._wait(fork))
        return events

    def whole(self, response: Json) -> Json:
        return super().whole(self._response(response))

    # ---- calls -------------------------------------------------------------------------------

    def _spawn(self, index: int) -> list[Json]:
        """The call that starts a thread, and its output."""
        thread, name = self._log.threads[index], self._name(index)
        arguments = {"agent_name": name, "message": thread["title"]}
        return self._call("spawn_agent", index, arguments, [json.dumps({"agent_name": name})])

    def _wait(self, fork: list[int]) -> list[Json]:
        """The call that joins the threads of ``fork``, and its output: what they wrote."""
        arguments = {"agent_names": [self._name(index) for index in fork]}
        return self._call("wait_agent", fork[0], arguments, [self._log.threads[i]["content"] for i in fork])

    def _call(self, action: str, index: int, arguments: Json, texts: list[str]) -> list[Json]:
        parent = self._parent(index)
        who = ROOT if parent is None else self._name(parent)
        key = f"{action}_{self._log.threads[index]['id']}"
        about = {"action": action, "call_id": f"call_{key}"}
        output = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
        call = {"type": _CALLS[0], "id": f"mac_{key}", "arguments": json.dumps(arguments), **about}
        return [_of(who, call), _of(who, {"type": _CALLS[1], "id": f"maco_{key}", "output": output, **about})]

    def _say(self, items: list[Json]) -> list[Json]:
        """The events of ``items``, which are whole at once."""
        events = []
        for item in items:
            slot = (item["type"], len(self._calls))
            self._calls[slot] = item
            for name in ("added", "done"):
                event = {"type": f"response.output_item.{name}", "item": item, "sequence_number": 0}
                event["output_index"] = self._place(slot)
                events.append(self._numbered(event | {"agent": item["agent"]}))
        return events

    def _told(self, fork: list[int]) -> Iterator[Json]:
        """All items of ``fork``, with those of the forks within its threads."""
        for index in fork:
            yield from self._spawn(index)
            yield self._item(self._log.threads[index])
        for inner in self._log.forks:
            if self._parent(inner[0]) in fork:
                yield from self._told(inner)
        yield from self._wait(fork)

    # ---- what ResponseThreads asks ------------------------------------------------------------

    def _item(self, thread: Json) -> Json:
        item = _of(self._name(thread["index"]), super()._item(thread))
        return item if self._has_extras else {key: value for key, value in item.items() if key != "thread"}

    def _event(self, name: str, index: int, **more: object) -> Json:
        return _of(self._name(index), super()._event(name, index, **more))

    def _waits(self, index: int, waits_for: Json) -> list[Json]:
        return super()._waits(index, waits_for) if self._has_extras else []

    def _told_behind(self) -> Iterator[tuple[str, list[Json]]]:
        for fork in self._log.forks:
            if self._parent(fork[0]) is None:
                yield self._log.threads[fork[0]]["content"], list(self._told(fork))

    def _own_items(self) -> dict[Slot, Json]:
        return super()._own_items() | self._calls

    # ---- the tree ------------------------------------------------------------------------------

    def _parent(self, index: int) -> int | None:
        """The thread that forked a thread, None if the answer did."""
        parent_id = self._log.threads[index]["parent_id"]
        return next((t["index"] for t in self._log.threads if t["id"] == parent_id), None)

    def _name(self, index: int) -> str:
        """The agent that a thread is: its parent's name, and which of its parent's threads it is, from 1."""
        if index not in self._names:
            thread, parent = self._log.threads[index], self._parent(index)
            siblings = [t["index"] for t in self._log.threads if t["parent_id"] == thread["parent_id"]]
            above = ROOT if parent is None else self._name(parent)
            self._names[index] = f"{above}/{siblings.index(index) + 1}"
        return self._names[index]

    def _ended_fork(self, index: int) -> list[int] | None:
        """The fork that is over with the end of a thread, if that was not told yet."""
        fork = next(fork for fork in self._log.forks if index in fork)
        is_over = all("finish_reason" in self._log.threads[i] for i in fork)
        return fork if is_over and fork[0] not in self._joined else None

    def _response(self, response: Json) -> Json:
        """``response`` of vLLM's with the agent of its items."""
        told = response | {"output": [_of(ROOT, item) for item in response.get("output") or []]}
        usage: Any = told.get("usage")
        if not self._has_extras and isinstance(usage, dict):
            told["usage"] = {key: value for key, value in usage.items() if key != "forkjoin"}
        return told


def _of(name: str, item: Json) -> Json:
    return item | {"agent": {"agent_name": name}}
