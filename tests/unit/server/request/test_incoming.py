from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request, UploadFile

from forkjoin_server.http.bodies import BodyMiddleware
from forkjoin_server.request.incoming import MIB, BodyStalled, read
from forkjoin_server.routes import CHAT, INVOCATIONS, MESSAGES, PATHS

SPEECH = "/v1/audio/transcriptions"
FORM = b"multipart/form-data; boundary=x"


def _app():
    app = FastAPI()
    app.state.args, app.state.read = SimpleNamespace(forkjoin_max_body_mib=1), []

    for path in (*PATHS, INVOCATIONS, "/tokenize"):

        @app.post(path)
        async def answer(request: Request):
            app.state.read.append(len(await request.body()))
            return {}

    @app.post(SPEECH)
    async def transcribe(file: UploadFile):
        app.state.read.append(len(await file.read()))
        return {}

    return app


def _ask(app, path, parts, *headers):
    """The status and body of the answer, and how many parts of the request's body were read for it."""
    sent, left = [], list(parts)

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": list(headers),
        "query_string": b"",
        "app": app,
    }
    asyncio.run(BodyMiddleware(app)(scope, receive, send))
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    return sent[0], json.loads(sent[1]["body"]), len(parts) - len(left)


@pytest.mark.parametrize("path", [*PATHS, INVOCATIONS, "/tokenize"])
def test_a_body_that_says_it_is_too_long_is_not_read(path):
    app = _app()
    start, body, num_read = _ask(app, path, [b"x"], (b"content-length", str(MIB + 1).encode()))
    assert (start["status"], num_read, app.state.read) == (413, 0, [])
    assert "at most 1 MiB (the server's --max-body-mib)" in body["error"]["message"]
    assert (b"connection", b"close") in start["headers"]
    assert body["error"]["type"] == (
        "request_too_large" if path == MESSAGES else "RequestEntityTooLargeError"
    )


@pytest.mark.parametrize("path", [CHAT, INVOCATIONS, "/tokenize"])
@pytest.mark.parametrize("headers", [[], [(b"content-length", b"5")]], ids=["chunked", "lies"])
def test_a_body_that_turns_out_too_long_is_not_read_to_its_end(path, headers):
    app = _app()
    start, _, num_read = _ask(app, path, [b"x" * MIB, b"x", b"x", b"x"], *headers)
    assert (start["status"], num_read, app.state.read) == (413, 2, [])


def test_a_body_of_just_the_limit_is_read():
    app = _app()
    start, _, _ = _ask(app, "/tokenize", [b"x" * MIB], (b"content-length", str(MIB).encode()))
    assert (start["status"], app.state.read) == (200, [MIB])


def _form(size):
    head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return [head, *[b"x" * 1000] * (size // 1000), b"\r\n--x--\r\n"]


def test_an_upload_is_handed_on_as_it_comes_up_to_the_limit():
    app = _app()
    start, _, _ = _ask(app, SPEECH, _form(MIB // 2), (b"content-type", FORM))
    assert (start["status"], len(app.state.read)) == (200, 1)
    start, body, num_read = _ask(app, SPEECH, _form(2 * MIB), (b"content-type", FORM))
    assert (start["status"], len(app.state.read)) == (413, 1)
    assert "--max-body-mib" in body["error"]["message"]
    assert num_read < 1100


@pytest.mark.parametrize(
    "headers",
    [
        [b"application/json", b"multipart/x"],
        [b"multipart/x", b"application/json"],
        [FORM],
        [b"application/x+json"],
        [],
        [b"text/plain"],
    ],
    ids=["json_first", "form_first", "form", "json_like", "none", "text"],
)
@pytest.mark.parametrize("path", [*PATHS, INVOCATIONS])
def test_what_a_body_says_of_fork_join_is_read_whatever_kind_its_headers_say_it_is(path, headers):
    app = _app()
    body = {"messages": [], "vllm_xargs": {"forkjoin": "{}"}}
    start, answer, _ = _ask(app, path, [json.dumps(body).encode()], *((b"content-type", h) for h in headers))
    assert (start["status"], app.state.read) == (400, [])
    assert "vllm_xargs.forkjoin" in json.dumps(answer)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_body_in_any_encoding_of_json_is_read(encoding):
    app = _app()
    raw = json.dumps({"messages": [], "vllm_xargs": {"forkjoin": "{}"}}).encode(encoding)
    start, answer, _ = _ask(app, CHAT, [raw])
    assert (start["status"], app.state.read) == (400, [])
    assert "vllm_xargs.forkjoin" in json.dumps(answer)


def test_of_a_key_that_stands_twice_the_last_counts_for_vllm_too():
    app = _app()
    raw = b'{"messages": [], "vllm_xargs": {"forkjoin": 1}, "vllm_xargs": {}, "forkjoin": 3, "forkjoin": {}}'
    assert _ask(app, CHAT, [raw])[0]["status"] == 200
    assert app.state.read == [len(b'{"messages": [], "vllm_xargs": {}}')]


class Sender:
    """A client that sends its body when it is let, and reads the answer."""

    def __init__(self, bodies, app, size, path=CHAT):
        self.sent, self.may_send, self._size = [], asyncio.Event(), size
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        self.ask = bodies({**scope, "app": app}, self._receive, self._send)
        self._num_parts = 0

    async def _receive(self):
        self._num_parts += 1
        if self._num_parts == 2:
            await self.may_send.wait()
        body = b'{"": "' + b"x" * (self._size - 7) + b'"' if self._num_parts == 1 else b"}"
        return {"type": "http.request", "body": body, "more_body": self._num_parts == 1}

    async def _send(self, message):
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"] if self.sent else None


async def _settled():
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/tokenize"])
def test_the_bodies_of_all_requests_have_a_limit_together(path):
    async def run():
        app = _app()
        app.state.args.forkjoin_max_body_mib, app.state.args.forkjoin_max_bodies_mib = 2, 1
        bodies = BodyMiddleware(app)
        first, second = (Sender(bodies, app, size, path) for size in (MIB + 1, MIB // 2))
        task = asyncio.create_task(first.ask)  # alone it may be larger than all together
        await _settled()
        await second.ask
        assert (first.status, second.status) == (None, 503)
        assert dict(second.sent[0]["headers"])[b"retry-after"] == b"1"
        assert b"--max-bodies-mib" in second.sent[1]["body"]
        first.may_send.set()
        await task
        assert (first.status, app.state.read) == (200, [MIB + 2])
        third = Sender(bodies, app, MIB // 2, path)
        third.may_send.set()
        await third.ask
        assert third.status == 200

    asyncio.run(run())


@pytest.mark.parametrize(("path", "kind"), [(CHAT, "RequestTimeoutError"), (MESSAGES, "timeout_error")])
def test_who_sends_no_more_of_a_body_holds_no_place(path, kind):
    async def run():
        app = _app()
        app.state.args.forkjoin_client_stall_s = 0
        stalled = Sender(BodyMiddleware(app), app, 100, path)
        await stalled.ask
        assert stalled.status == 408
        assert (b"connection", b"close") in stalled.sent[0]["headers"]
        assert json.loads(stalled.sent[1]["body"])["error"]["type"] == kind
        assert app.state.read == []

    asyncio.run(run())


class NoRealTime(asyncio.SelectorEventLoop):
    """Its clock goes at once to what all wait for: whoever is in time is so on any machine."""

    _now = 0.0

    def time(self):
        return self._now

    def _run_once(self):
        waiting = [handle.when() for handle in self._scheduled if not handle.cancelled()]
        if waiting and not self._ready:
            self._now = max(self._now, min(waiting))
        super()._run_once()


def _read(receive, stall_s):
    with asyncio.Runner(loop_factory=NoRealTime) as runner:
        return runner.run(read(receive, MIB, lambda _: None, stall_s))


def test_a_body_that_comes_byte_by_byte_without_end_is_not_waited_for():
    async def drip():
        await asyncio.sleep(1)
        num_sent.append(1)
        return {"type": "http.request", "body": b"a", "more_body": len(num_sent) < 1000}

    num_sent = []
    with pytest.raises(BodyStalled, match="at least 500 bytes a second, got 10 bytes"):
        _read(drip, 10)
    assert len(num_sent) == 10


def test_a_slow_body_that_is_fast_enough_is_read_whole():
    async def part():
        await asyncio.sleep(9)
        num_sent.append(1)
        return {"type": "http.request", "body": b"a" * 5000, "more_body": len(num_sent) < 30}

    num_sent = []
    assert len(_read(part, 10)) == 30 * 5000
