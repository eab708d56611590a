"""What runs under Ray Serve, without Ray: one server of its own, requests passed on, a drain at the end."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import textwrap

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse

from tests.deploy.manifests import DEPLOY

#: Answers like `forkjoin serve`, as far as it is asked here; says in a file how it ended.
STUB = textwrap.dedent("""
    import json, os, signal, sys, threading, time
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def log_message(self, *args): pass
        def do_GET(self):
            self.answer(200, {"path": self.path, "key": self.headers.get("authorization")})
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if b"die at once" in body:
                os._exit(1)
            if b"together" in body:
                everybody.wait(60)
            if b"stream" in body:
                self.send_response(200)
                kind = "application/octet-stream" if b"bytes" in body else "text/event-stream"
                self.send_header("content-type", kind)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for i in range(3):
                    data = f"data: {i}\\n\\n".encode()
                    self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))
                    if b"die" in body:
                        self.wfile.flush()
                        os._exit(1)
                self.wfile.write(b"0\\r\\n\\r\\n")
            else:
                self.answer(400, {"error": body.decode()})
        def answer(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header("retry-after", "1")
            self.end_headers()
            self.wfile.write(data)

    # More than a hundred, which is as many connections as httpx opens by itself.
    everybody = threading.Barrier(120)
    ThreadingHTTPServer.request_queue_size = 256
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
    def end(*_):
        open(sys.argv[1], "w").write("drained")
        threading.Thread(target=server.shutdown).start()
    signal.signal(signal.SIGTERM, end)
    server.serve_forever()
""")


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("forkjoin_app", DEPLOY / "kuberay/forkjoin_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stub(tmp_path):
    file = tmp_path / "stub.py"
    file.write_text(STUB)
    return [sys.executable, str(file)]


def _request(method, path, body=b"", query=b""):
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [
        (b"host", b"cluster"),
        (b"authorization", b"Bearer x"),
        (b"content-length", str(len(body)).encode()),
    ]
    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": headers}
    return Request(scope | {"server": ("cluster", 80), "scheme": "http"}, receive)


async def _ask(replica, request):
    answer = await replica(request)
    if not isinstance(answer, StreamingResponse):
        return answer.status_code, dict(answer.headers), [answer.body]
    return answer.status_code, dict(answer.headers), [chunk async for chunk in answer.body_iterator]


def test_requests_and_streams_are_passed_on(app, stub, tmp_path):
    replica = app.Replica([str(tmp_path / "end")], command=stub)

    async def ask():
        get = await _ask(replica, _request("GET", "/v1/models", query=b"a=b%20c"))
        stream = await _ask(replica, _request("POST", "/v1/chat/completions", b'{"stream": true}'))
        wrong = await _ask(replica, _request("POST", "/v1/chat/completions", b"{}"))
        await replica._client.aclose()
        return get, stream, wrong

    get, stream, wrong = asyncio.run(ask())
    assert get[2] == [b'{"path": "/v1/models?a=b%20c", "key": "Bearer x"}']
    assert stream[1]["content-type"] == "text/event-stream"
    assert b"".join(stream[2]) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert (wrong[0], wrong[1]["retry-after"]) == (400, "1")
    replica.check_health()

    replica.__del__()
    assert (tmp_path / "end").read_text() == "drained"
    with pytest.raises(RuntimeError, match="ended with 0"):
        replica.check_health()


def test_as_many_requests_are_passed_on_at_a_time_as_serve_lets_in(app, stub, tmp_path):
    """The stand-in answers them when all are there."""
    replica = app.Replica([str(tmp_path / "end")], command=stub)

    async def ask():
        asked = [_request("POST", "/v1/chat/completions", b"together") for _ in range(120)]
        answers = await asyncio.gather(*(_ask(replica, one) for one in asked))
        await replica._client.aclose()
        return answers

    assert {status for status, _, _ in asyncio.run(ask())} == {400}
    replica.__del__()


def test_a_request_to_a_server_that_has_ended_is_to_be_asked_again_at_once(app, stub, tmp_path):
    replica = app.Replica([str(tmp_path / "end")], command=stub)

    async def ask():
        ending = await _ask(replica, _request("POST", "/v1/chat/completions", b"die at once"))
        replica._process.wait(30)
        return ending, await _ask(replica, _request("POST", "/v1/chat/completions", b"{}"))

    for status, headers, body in asyncio.run(ask()):
        assert (status, headers["retry-after"]) == (503, "1")
        assert "ask again" in json.loads(b"".join(body))["error"]["message"]
    with pytest.raises(RuntimeError, match="ended with 1"):
        replica.check_health()


def test_a_stream_whose_server_ends_says_so_in_its_last_event(app, stub, tmp_path):
    replica = app.Replica([str(tmp_path / "end")], command=stub)
    asked = _request("POST", "/v1/chat/completions", b'{"stream": true, "then": "die"}')
    status, _, body = asyncio.run(_ask(replica, asked))
    events = [event for event in b"".join(body).decode().split("\n\n") if event]
    assert (status, events[0]) == (200, "data: 0")
    assert (
        "ended before this answer was over"
        in json.loads(events[1].removeprefix("data: "))["error"]["message"]
    )
    assert len(events) == 2


def test_another_body_whose_server_ends_breaks_off(app, stub, tmp_path):
    replica = app.Replica([str(tmp_path / "end")], command=stub)
    asked = _request("POST", "/v1/chat/completions", b'{"stream": "bytes", "then": "die"}')
    with pytest.raises(httpx.TransportError):
        asyncio.run(_ask(replica, asked))


def test_a_server_that_does_not_start_is_an_error(app):
    with pytest.raises(RuntimeError, match="ended with 3"):
        app.Replica([], command=[sys.executable, "-c", "raise SystemExit(3)"])


def test_it_does_not_need_ray_to_be_read():
    code = "import sys, forkjoin_app; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=DEPLOY / "kuberay").returncode == 0
