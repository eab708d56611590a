"""Fork/join around vLLM's routes: the request's field in, thread deltas and usage out.

An ASGI middleware, so that vLLM's handlers stay as they are: it validates ``forkjoin`` and moves
it to where the engine finds it, and weaves the thread events into the response. Events reach a
client no later than the content that follows them: they are written before each chunk of vLLM's,
and by a task of their own while vLLM has nothing to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.feed import FEEDS, new_key
from forkjoin_scheduler.options import parse_options
from forkjoin_scheduler.settings import KEY, UNLIMITED, Settings
from forkjoin_server import metrics
from forkjoin_server.lifecycle import Lifecycle
from forkjoin_server.threads import Json, ThreadLog

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
CHAT = PATHS[0]

_DRAINING = {
    "error": {
        "message": "the server is shutting down and takes no new requests: send it again, or elsewhere",
        "type": "ServiceUnavailableError",
        "param": None,
        "code": 503,
    }
}


class ForkJoinMiddleware:
    """Wraps vLLM's FastAPI application."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.lifecycle = Lifecycle()
        self._starting: asyncio.Task[None] | None = None
        if metrics.observe not in FEEDS.observers:
            FEEDS.observers.append(metrics.observe)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._starting = asyncio.create_task(self.lifecycle.start(scope["app"].state))
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] == "/ready":
            ready = await self.lifecycle.is_ready(scope["app"].state)
            await _respond(send, 200 if ready else 503, {"ready": ready})
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif self.lifecycle.is_draining:
            await _respond(send, 503, _DRAINING, [(b"retry-after", b"1")])
        else:
            with self.lifecycle.request():
                await self._post(scope, receive, send)

    async def _post(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] in PATHS:
            await self._generate(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _generate(self, scope: Message, receive: Receive, send: Send) -> None:
        raw = await _body(receive)
        key = new_key()
        try:
            body, wants_threads = prepare(json.loads(raw), scope["path"], key, _caps(scope))
        except BadRequestOptions as error:
            await _respond(send, 400, _openai_error(str(error)))
            return
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
            # Not ours to judge: vLLM answers a body that is no JSON object.
            await self.app(scope, _replay(raw, receive), send)
            return
        queue = FEEDS.subscribe(key)
        weaver = Weaver(send, queue, ThreadLog(key, count_answers(body)), wants_threads)
        pump = asyncio.create_task(weaver.pump())
        try:
            await self.app(
                _with_request_id(scope, key), _replay(json.dumps(body).encode(), receive), weaver.send
            )
        finally:
            pump.cancel()
            FEEDS.unsubscribe(key)
            with contextlib.suppress(asyncio.CancelledError):
                await pump


def _caps(scope: Message) -> Limits:
    """The limits that no request may go over, as the operator gave them to the engine."""
    vllm_config = getattr(getattr(scope.get("app"), "state", None), "vllm_config", None)
    given = vllm_config.additional_config.get(KEY) if vllm_config is not None else None
    return Settings.model_validate(given).caps if given else UNLIMITED


def prepare(body: Json, path: str, key: str, caps: Limits = UNLIMITED) -> tuple[Json, bool]:
    """Move the fork/join field of ``body`` to where the engine reads it.

    Returns the body for vLLM and whether the client wants its threads. Raises BadRequestOptions.
    """
    if not isinstance(body, dict):
        raise TypeError("not a JSON object")
    body = dict(body)
    xargs = body.get("vllm_xargs")
    if isinstance(xargs, dict) and "forkjoin" in xargs:
        raise BadRequestOptions("vllm_xargs.forkjoin: expected the field forkjoin in the body itself")
    given = body.pop("forkjoin", None)
    options = parse_options({} if given is None else given)
    fields = {} if given is None else options.model_dump(exclude_unset=True)
    stream_options = body.get("stream_options")
    if isinstance(stream_options, dict) and "include_threads" in stream_options:
        stream_options = dict(stream_options)
        fields["include_threads"] = stream_options.pop("include_threads")
        options = parse_options(fields)
        body["stream_options"] = stream_options
    options.check_caps(caps)
    if options.include_threads and path == CHAT and body.get("n") not in (None, 1):
        raise BadRequestOptions(f"include_threads: expected n = 1, got n = {body['n']!r}: ask for one choice")
    if fields:
        body["vllm_xargs"] = (xargs if isinstance(xargs, dict) else {}) | {"forkjoin": json.dumps(fields)}
    if path == "/v1/responses":
        body.setdefault("request_id", f"resp_{key}")
    return body, options.include_threads and path == CHAT


def count_answers(body: Json) -> int:
    """How many sequences a request body asks for: choices times prompts; 1 where vLLM will refuse it."""
    prompt, n = body.get("prompt"), body.get("n") or 1
    is_list = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    num_prompts = len(prompt) if is_list and isinstance(prompt, list) else 1
    return num_prompts * (n if isinstance(n, int) else 1)


@dataclass
class Weaver:
    """Writes vLLM's response to the client with the thread events in it."""

    raw_send: Send
    queue: asyncio.Queue[Json]
    log: ThreadLog
    wants_threads: bool
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _streams: bool = False
    _start: Message | None = None
    _template: Json | None = None
    _buffer: bytes = b""
    _pending: deque[Json] = field(default_factory=deque)

    async def send(self, message: Message) -> None:
        """Take a message of vLLM's response."""
        async with self._lock:
            if message["type"] == "http.response.start":
                await self._begin(message)
            elif self._streams:
                await self._stream(message)
            else:
                await self._whole(message)

    async def pump(self) -> None:
        """Write thread events that come while vLLM has nothing to say."""
        while True:
            # Kept in order: whoever holds the lock may write it before this task gets there.
            self._pending.append(await self.queue.get())
            async with self._lock:
                await self._emit_due()

    async def _emit_due(self) -> None:
        """Write all events that have come, in their order, once there is a chunk to shape them after."""
        if self._template is None:
            return
        for event in self._due():
            await self._emit(event)

    def _due(self) -> Iterator[Json]:
        """The events that have come, in their order, each taken as it is yielded."""
        while self._pending or not self.queue.empty():
            yield self._pending.popleft() if self._pending else self.queue.get_nowait()

    async def _begin(self, message: Message) -> None:
        headers = dict(message["headers"])
        self._streams = b"text/event-stream" in headers.get(b"content-type", b"")
        if self._streams:
            await self.raw_send(message)
        else:
            self._start = message

    async def _whole(self, message: Message) -> None:
        """Gather a JSON response; correct it if the request forked."""
        self._buffer += message.get("body", b"")
        if message.get("more_body"):
            return
        for event in self._due():
            self.log.delta(event)
        body = self._buffer
        if self._start is not None and self._start["status"] == 200 and self.log.ended is not None:
            body = json.dumps(self._corrected(json.loads(body))).encode()
        start = self._start or {"type": "http.response.start", "status": 500, "headers": []}
        start["headers"] = [
            (k, str(len(body)).encode() if k.lower() == b"content-length" else v) for k, v in start["headers"]
        ]
        await self.raw_send(start)
        await self.raw_send({"type": "http.response.body", "body": body})

    async def _stream(self, message: Message) -> None:
        """Hand on complete server-sent events, each behind the thread events that precede it."""
        self._buffer += message.get("body", b"")
        *complete, self._buffer = self._buffer.split(b"\n\n")
        for event in complete:
            chunk = _chunk(event)
            await self._emit_due()
            if chunk is not None and self.log.ended and _holder_of_usage(chunk):
                name = event.partition(b"data: ")[0]
                event = name + b"data: " + json.dumps(self._corrected(chunk)).encode()
            await self._write(event + b"\n\n")
            if self._template is None and chunk is not None:
                self._template = {k: chunk[k] for k in ("id", "object", "created", "model") if k in chunk}
                await self._emit_due()
        if not message.get("more_body"):
            await self.raw_send({"type": "http.response.body", "body": self._buffer})

    async def _emit(self, event: Json) -> None:
        entries = self.log.delta(event)
        if entries and self.wants_threads and self._template is not None:
            choice = {"index": 0, "delta": {"threads": entries}, "finish_reason": None}
            chunk = self._template | {"choices": [choice]}
            await self._write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def _corrected(self, response: Json) -> Json:
        if holder := _holder_of_usage(response):
            holder["usage"] = self.log.correct_usage(holder["usage"])
        if self.wants_threads and "message" in (response.get("choices") or [{}])[0]:
            response["choices"][0]["message"]["threads"] = self.log.threads
        return response

    async def _write(self, body: bytes) -> None:
        await self.raw_send({"type": "http.response.body", "body": body, "more_body": True})


def _chunk(event: bytes) -> Json | None:
    """The JSON of an event's data (/v1/responses names its events), None for ``[DONE]`` and comments."""
    data = event.partition(b"data: ")[2]
    if not data.startswith(b"{"):
        return None
    chunk: Json = json.loads(data)
    return chunk


def _holder_of_usage(chunk: Json) -> Json | None:
    """The object in ``chunk`` with a usage: itself, or the response that an event carries."""
    inner = chunk.get("response")
    holder: Json = inner if isinstance(inner, dict) else chunk
    return holder if holder.get("usage") else None


def _with_request_id(scope: Message, key: str) -> Message:
    """``scope`` with our key in the X-Request-Id that vLLM derives its request id from."""
    given = [v for k, v in scope["headers"] if k == b"x-request-id"]
    value = b"-".join([*given, key.encode()])
    others = [(k, v) for k, v in scope["headers"] if k not in (b"x-request-id", b"content-length")]
    return {**scope, "headers": [*others, (b"x-request-id", value)]}


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that yields ``body`` once, then what the connection says (disconnects)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _respond(
    send: Send, status: int, body: Json, more_headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    headers += more_headers
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _openai_error(message: str) -> Json:
    return {"error": {"message": message, "type": "BadRequestError", "param": "forkjoin", "code": 400}}
