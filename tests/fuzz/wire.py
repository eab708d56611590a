"""Streams and whole answers through the weaver: vLLM's content passes, whatever events come in between."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import (
    Event,
    FamilyEnded,
    Forked,
    NewThread,
    Progress,
    ThreadEnded,
    Tokens,
)
from forkjoin_server.answer.chat import ChatThreads
from forkjoin_server.answer.responses import ResponseThreads
from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.answer.weaver import PassThrough, Weaver
from tests.fuzz.source import Source

START = {"type": "http.response.start", "status": 200}
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]


def target(data: bytes) -> None:
    source = Source(data)
    presenter = source.choice((ChatThreads, ResponseThreads, None))
    asyncio.run(_stream(source, presenter) if source.below(4) else _whole(source, presenter))


async def _stream(source: Source, presenter: Any) -> None:
    chunks = [_chunk(source, i, presenter) for i in range(source.below(6) + 1)]
    raw = b"".join(_event(c, presenter) for c in chunks) + b"data: [DONE]\n\n" * source.below(2)
    sent = await _weave(source, presenter, {**START, "headers": SSE}, raw)
    out = b"".join(m.get("body", b"") for m in sent[1:])
    assert sent[0]["type"] == "http.response.start"
    assert not sent[-1].get("more_body")
    assert out.endswith(b"data: [DONE]\n\n") == raw.endswith(b"data: [DONE]\n\n")
    given, got = _contents(raw), _contents(out)
    assert got == given, "vLLM's own content must pass as it is"


async def _whole(source: Source, presenter: Any) -> None:
    message = {"role": "assistant", "content": source.text()}
    body: dict[str, Any] = {
        "id": "i",
        "choices": [{"index": 0, "message": message}],
        "output": [],
        "usage": _usage(source),
    }
    raw = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    sent = await _weave(source, presenter, {**START, "headers": headers}, raw)
    out = b"".join(m.get("body", b"") for m in sent[1:])
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(out)).encode()
    assert json.loads(out)["choices"][0]["message"]["content"] == message["content"]


async def _weave(source: Source, presenter: Any, start: dict[str, Any], raw: bytes) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    queue: asyncio.Queue[Any] = asyncio.Queue()
    log = ThreadLog("k", source.below(2) + 1, is_wanted=presenter is not None)
    weaver = Weaver(send, queue, log, PassThrough() if presenter is None else presenter(log))
    events = Events(source)
    await weaver.send(start)
    while raw:
        for _ in range(source.below(3)):
            queue.put_nowait(events.next())
        # vLLM sends an event a message; what nobody asked to be told of passes as it comes.
        size = (
            raw.find(b"\n\n") + 2 if presenter is None and start["headers"] is SSE else source.below(300) + 1
        )
        part, raw = raw[:size], raw[size:]
        await weaver.send({"type": "http.response.body", "body": part, "more_body": bool(raw)})
    return sent


class Events:
    """Thread events in an order that an engine may send them in."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._open: list[int] = []
        self._num_threads = 0
        self._counts = {"num_threads": 0, "critical_path_tokens": 0, "total_tokens": 0, "surplus_tokens": 0}

    def next(self) -> Event:
        kind = self._source.below(4)
        if kind == 0 or not self._num_threads:
            return self._forked()
        if kind == 1 and self._open:
            index = self._source.choice(self._open)
            return Tokens(index=index, text=self._source.text(), token_ids=[1])
        if kind == 2 and self._open:
            index = self._open.pop(self._source.below(len(self._open)))
            reason = self._source.choice(tuple(ThreadEnd))
            return ThreadEnded(index=index, reason=reason, num_tokens=self._source.below(9))
        self._counts = {name: count + self._source.below(9) for name, count in self._counts.items()}
        return self._source.choice((Progress, FamilyEnded))(family="f", **self._counts)

    def _forked(self) -> Event:
        first, num = self._num_threads, self._source.below(4) + 1
        self._num_threads += num
        self._open += range(first, first + num)
        threads = [
            NewThread(index=i, number=str(i), title=self._source.text()) for i in range(first, first + num)
        ]
        return Forked(parent_index=self._source.below(first + 1) - 1, threads=threads, shared_tokens=0)


def _usage(source: Source) -> Any:
    if source.one_in(4):
        return None
    prompt, written = source.below(99), source.below(99)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _chunk(source: Source, index: int, presenter: Any) -> dict[str, Any]:
    text = source.text()
    if presenter is ResponseThreads:
        made: dict[str, Any] = {
            "type": "response.output_text.delta",
            "delta": text,
            "sequence_number": index,
            "output_index": 0,
            "item_id": "m",
        }
        if source.one_in(6):
            made = {
                "type": "response.in_progress",
                "sequence_number": index,
                "response": {"id": "r", "output": [], "usage": None},
            }
        return made
    made = {"id": "i", "object": "chat.completion.chunk", "model": "m", "created": 1}
    made["choices"] = (
        [{"index": 0, "delta": {"content": text}, "finish_reason": None}] if source.below(5) else []
    )
    if source.one_in(3):
        made["usage"] = _usage(source)
    return made


def _event(chunk: dict[str, Any], presenter: Any) -> bytes:
    name = f"event: {chunk['type']}\n" if "type" in chunk else ""
    return f"{name}data: {json.dumps(chunk)}\n\n".encode()


def _contents(raw: bytes) -> list[str]:
    """The texts in a stream, in order."""
    texts = []
    for event in raw.split(b"\n\n"):
        data = event.partition(b"data: ")[2]
        if not data.startswith(b"{"):
            continue
        chunk = json.loads(data)
        if chunk.get("type") == "response.output_text.delta":
            texts.append(chunk["delta"])
        texts += [c["delta"]["content"] for c in chunk.get("choices", ()) if "content" in c["delta"]]
    return texts
