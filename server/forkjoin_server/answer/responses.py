"""Threads on ``/v1/responses``: one ``reasoning`` output item each.

Reasoning, because the SDKs' ``output_text`` gathers ``message`` items: it stays the transcript.

In a stream, the SDKs' helpers append an item at ``response.output_item.added`` and find it by its
``output_index`` later, so indexes are given here, dense in the order in which items appear; vLLM's
own items, which it counts by itself, are moved to make room. The same holds for
``sequence_number``. A text delta is of a content part, which must have been added before.
"""

from __future__ import annotations

from collections.abc import Iterator

from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.asgi import Json
from forkjoin_server.routes import FINAL_EVENTS

#: Whose item it is (vLLM's or a thread's), and which of them.
Slot = tuple[str, int]
_VLLM, _THREAD = "vllm", "thread"


class ResponseThreads:
    """Shows entries as the events of reasoning items."""

    def __init__(self, log: ThreadLog) -> None:
        self._log = log
        self._places: dict[Slot, int] = {}
        self._open: set[int] = set()
        self._num_events = 0
        self.is_ready = False

    def pass_on(self, chunk: Json) -> list[Json]:
        before: list[Json] = []
        if chunk["type"] in FINAL_EVENTS:
            for index in sorted(self._open):
                before += self._close(index)
            output = self._final_output(chunk["response"]["output"])
            chunk = chunk | {"response": chunk["response"] | {"output": output}}
        if "output_index" in chunk:
            chunk = chunk | {"output_index": self._place((_VLLM, chunk["output_index"]))}
        # From here on SDKs know the response that items are added to.
        self.is_ready = self.is_ready or chunk["type"] == "response.in_progress"
        return [*before, self._numbered(chunk)]

    def show(self, entries: list[Json]) -> list[Json]:
        events = []
        for entry in entries:
            index = entry["index"]
            if "id" in entry:
                events += self._add(index)
            if entry.get("content"):
                events.append(
                    self._event("reasoning_text.delta", index, content_index=0, delta=entry["content"])
                )
            if "waits_for" in entry:
                events += self._waits(index, entry["waits_for"])
            if "finish_reason" in entry:
                events += self._close(index)
        return events

    def whole(self, response: Json) -> Json:
        return response | {"output": list(self._woven(response["output"]))}

    def _add(self, index: int) -> list[Json]:
        self._open.add(index)
        item = self._item(self._log.threads[index]) | {"content": [], "status": "in_progress"}
        return [
            self._event("output_item.added", index, item=item),
            self._event("content_part.added", index, content_index=0, part=_part("")),
        ]

    def _waits(self, index: int, waits_for: Json) -> list[Json]:
        """A delta without text: an event of its own would be none of OpenAI's."""
        thread = {"index": index, "waits_for": waits_for}
        return [self._event("reasoning_text.delta", index, content_index=0, delta="", thread=thread)]

    def _close(self, index: int) -> list[Json]:
        self._open.discard(index)
        thread = self._log.threads[index]
        text = thread["content"]
        return [
            self._event("reasoning_text.done", index, content_index=0, text=text),
            self._event("content_part.done", index, content_index=0, part=_part(text)),
            self._event("output_item.done", index, item=self._item(thread)),
        ]

    def _event(self, name: str, index: int, **more: object) -> Json:
        event = {"type": f"response.{name}", "output_index": self._place((_THREAD, index)), **more}
        if "item" not in more:
            event["item_id"] = self._log.threads[index]["id"]
        return self._numbered(event | {"sequence_number": 0})

    def _place(self, slot: Slot) -> int:
        """The output index of ``slot``, the next one if it is new."""
        return self._places.setdefault(slot, len(self._places))

    def _numbered(self, event: Json) -> Json:
        if "sequence_number" not in event:
            return event
        self._num_events += 1
        return event | {"sequence_number": self._num_events - 1}

    def _final_output(self, own: list[Json]) -> list[Json]:
        items: dict[Slot, Json] = {(_VLLM, i): item for i, item in enumerate(own)}
        items |= self._own_items()
        return [items[slot] for slot in sorted(items, key=self._place)]

    def _woven(self, output: list[Json]) -> Iterator[Json]:
        """The items of vLLM, each followed by ours whose text it holds (the first, where none does).

        That is where a stream shows them: a fork is made in the item that was the last one then.
        """
        texts, ours = [_text(item) for item in output] or [""], list(self._told_behind())
        holders = [next((i for i, text in enumerate(texts) if held in text), 0) for held, _ in ours]
        for i in range(len(texts)):
            yield from output[i : i + 1]
            for (_, items), holder in zip(ours, holders, strict=True):
                yield from items if holder == i else ()

    def _told_behind(self) -> Iterator[tuple[str, list[Json]]]:
        """Our items in a whole answer, in their order, each with the text whose item it follows."""
        for thread in self._log.threads:
            yield thread["content"], [self._item(thread)]

    def _own_items(self) -> dict[Slot, Json]:
        return {(_THREAD, t["index"]): self._item(t) for t in self._log.threads}

    def _item(self, thread: Json) -> Json:
        return {
            "type": "reasoning",
            "id": thread["id"],
            "summary": [],
            "content": [_part(thread["content"])],
            "status": "completed" if thread.get("finish_reason") == "stop" else "incomplete",
            "thread": {k: v for k, v in thread.items() if k != "content"},
        }


def without_threads(items: list[object]) -> list[object]:
    """``items`` of a request's ``input`` without the threads that a client gives back.

    Their text stands in the transcript already, which is given back beside them.
    """
    return [i for i in items if not (isinstance(i, dict) and str(i.get("id")).startswith("th_fj"))]


def _part(text: str) -> Json:
    return {"type": "reasoning_text", "text": text}


def _text(item: Json) -> str:
    """All text of an output item."""
    return "".join(part.get("text") or "" for part in item.get("content") or [])
