"""A server of one's own, with a program in the place of ``forkjoin serve``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import httpx
import pytest

from forkjoin.batch.running import Interrupted
from forkjoin.errors import ForkJoinError
from forkjoin_server.operate import own_server

#: Answers at the socket that its last argument names, and ends with 3 when it is asked to.
SERVER = """
import http.server, os, socketserver, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/end":
            os._exit(3)
        self.send_response(200)
        self.end_headers()
        said = os.environ["VLLM_API_KEY"] if self.path == "/key" else str(os.getpid())
        self.wfile.write(said.encode())

    def address_string(self):
        return "socket"

socketserver.UnixStreamServer(sys.argv[-1], Handler).serve_forever()
"""


@pytest.fixture
def put(monkeypatch, tmp_path):
    """Puts a program in the place of ``forkjoin serve``."""

    def do(program):
        path = tmp_path / "program"
        path.write_text(f"#!{sys.executable}\n{program}")
        path.chmod(0o755)
        monkeypatch.setattr(own_server.sys, "executable", str(path))

    return do


def _get(asked, path):
    with httpx.Client(transport=httpx.HTTPTransport(uds=asked.uds)) as http:
        return http.get(asked.server.address + path).text


def test_it_answers_inside_and_is_gone_afterwards(put, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "k")
    monkeypatch.setenv("FORKJOIN_CLIENT_API_KEY", "of another server")
    put(SERVER)
    with own_server.serving(["m"]) as asked:
        pid = int(_get(asked, "/"))
        assert asked.why_over() is None
        assert asked.server.api_key == "k"
        assert os.getsid(pid) == pid  # so that Ctrl-C does not reach it
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not os.path.exists(os.path.dirname(asked.uds))


def test_without_a_key_it_gets_one_of_its_own(put, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    put(SERVER)
    with own_server.serving(["--api-key-file", "f"]) as asked:
        assert len(asked.server.api_key) > 30
        assert _get(asked, "/key") == asked.server.api_key
    with own_server.serving([]) as other:
        assert other.server.api_key != asked.server.api_key


def test_whoever_asks_learns_that_it_has_ended(put):
    put(SERVER)
    with own_server.serving([]) as asked:
        with pytest.raises(httpx.TransportError):
            _get(asked, "/end")
        while asked.why_over() is None:
            time.sleep(0.01)
        assert "got its end, with status 3" in asked.why_over()


def test_one_that_does_not_start_is_an_error(put):
    put("raise SystemExit(2)")
    with pytest.raises(ForkJoinError, match="got its end, with status 2"), own_server.serving([]):
        pytest.fail("it has not started")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_ends_it_while_it_starts(number, put, tmp_path):
    started = tmp_path / "started"
    put(f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    main = threading.main_thread().ident

    def send():
        while not (started.exists() and started.read_text()):
            time.sleep(0.01)
        signal.pthread_kill(main, number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Interrupted), own_server.serving([]):
        pytest.fail("it has not started")
    sender.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
