"""Who may ask, of the real server: row 7 of the trials, SIGHUP, and that no key is in a log."""

from __future__ import annotations

import json
import os
import signal
import time

import anthropic
import httpx
import openai
import pytest

from forkjoin_server.access.keys import line_of, new_key
from tests.server import unhurried
from tests.server.cancelling import ENDLESS, cancel, streaming
from tests.server.conftest import start_server

pytestmark = pytest.mark.server

CHAT = {"model": "abacus", "max_tokens": 3, "messages": [{"role": "user", "content": "a=1+1"}]}
LIMIT_S = 240


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A server of two API processes, which logs JSON: its address, process, log, file of keys, and a key."""
    folder, key = tmp_path_factory.mktemp("keys"), new_key()
    path, log = folder / "keys.yaml", folder / "log"
    path.write_text(line_of("alice", key) + "\n")
    flags = ["--api-key-file", str(path), "--api-server-count", "2", "--log-format", "json"]
    flags += ["--enable-log-requests", *unhurried.FLAGS]
    with start_server(log, *flags, env=unhurried.ENV) as (address, process):
        yield address, process, log, path, key


def _status(address, key=None, path="/v1/chat/completions", body=CHAT):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    headers["content-type"] = "application/json"
    return httpx.post(address + path, content=json.dumps(body), headers=headers, timeout=LIMIT_S).status_code


def test_no_route_generates_without_a_key(kept):
    address, *_, key = kept
    lone = {"model": "abacus", "messages": CHAT["messages"], "forkjoin": {"branches": [{"text": "\ud800"}]}}
    for path in ("/v1/chat/completions", "/invocations", "/v1/messages", "/tokenize", "/no/such/route"):
        assert _status(address, path=path) == 401, path
    assert _status(address, path="/invocations", body=lone) == 401
    for path in ("/health", "/ready", "/ping", "/version", "/metrics", "/playground/"):
        assert httpx.get(address + path, timeout=LIMIT_S).status_code == 200, path
    for path in ("/v1/forkjoin", "/v1/forkjoin/families"):
        assert httpx.get(address + path, timeout=LIMIT_S).status_code == 401
    assert _status(address, key) == 200
    assert _status(address, key, path="/invocations") == 200


def test_both_clients_say_that_a_key_is_wrong_and_take_a_right_one(kept):
    address, *_, key = kept
    with openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", timeout=LIMIT_S) as client:
        with pytest.raises(openai.AuthenticationError, match="API key of this server"):
            client.chat.completions.create(**CHAT)
        assert client.with_options(api_key=key).chat.completions.create(**CHAT).choices
    with anthropic.Anthropic(base_url=address, api_key="wrong", timeout=LIMIT_S) as claude:
        with pytest.raises(anthropic.AuthenticationError, match="API key of this server"):
            claude.messages.create(**CHAT)
        assert claude.with_options(api_key=key).messages.create(**CHAT).content


def test_at_sighup_all_api_servers_read_the_file_again_and_keep_their_keys_where_it_is_broken(kept):
    address, process, log, path, key = kept
    before, second = path.read_text(), new_key()
    path.write_text(line_of("bob", second) + "\n")
    os.kill(process.pid, signal.SIGHUP)
    _wait_for(log, "SIGHUP: read 1 API keys", 2)
    # each on a connection of its own: both processes are asked
    assert {_status(address, second) for _ in range(6)} == {200}
    assert {_status(address, key) for _ in range(6)} == {401}
    path.write_text("broken: [")
    os.kill(process.pid, signal.SIGHUP)
    _wait_for(log, "SIGHUP: the API keys stay as they were", 2)
    assert {_status(address, second) for _ in range(6)} == {200}
    path.write_text(before)
    os.kill(process.pid, signal.SIGHUP)
    _wait_for(log, "SIGHUP: read 1 API keys", 4)
    assert {_status(address, key) for _ in range(6)} == {200}
    for written in (key, second):
        assert written not in log.read_text()


def test_a_thread_is_cancelled_by_its_own_key_whichever_api_server_is_asked(kept):
    address, process, log, path, key = kept
    others, before = new_key(), path.read_text()
    path.write_text(before + line_of("carol", others) + "\n")
    num_read = log.read_text().count("SIGHUP: read 2 API keys")
    os.kill(process.pid, signal.SIGHUP)
    _wait_for(log, "SIGHUP: read 2 API keys", num_read + 2)
    with streaming(address, ENDLESS, key) as answer:
        answer.read_until(lambda: len(answer.threads) == 3)
        thread = answer.threads[1]
        assert cancel(address, thread["id"])[0] == 401
        # each on a connection of its own: both processes are asked
        assert {cancel(address, thread["id"], others)[0] for _ in range(6)} == {404}
        assert cancel(address, thread["id"], key)[0] == 202
        answer.read_until(lambda: "finish_reason" in thread)
        assert {cancel(address, thread["id"], key)[0] for _ in range(6)} == {409}
    assert thread["finish_reason"] == "cancelled"
    path.write_text(before)


def _wait_for(log, text, times):
    end = time.monotonic() + LIMIT_S
    while log.read_text().count(text) < times:
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.05)
