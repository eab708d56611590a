"""Our client in TypeScript: its own tests, and what it makes of the real server's streams."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.cancelling import ENDLESS
from tests.server.reading import wait_until_idle

pytestmark = pytest.mark.server

CLIENT = Path(__file__).parents[2] / "client-ts"
SCRIPT = Path(__file__).parent / "client_ts.mjs"
PROMPT = "a=482*731, b=7*8, c=907*36"
ASK = {"model": "abacus", "temperature": 0, "messages": [{"role": "user", "content": PROMPT}]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The client, built and tested by itself."""
    folder = tmp_path_factory.mktemp("client-ts") / "package"
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    for command in (["npm", "ci", "--no-audit", "--no-fund"], ["npm", "test"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _node(built, server, request):
    package = json.loads((built / "package.json").read_text())
    entry = built / package["exports"]["."]["import"]
    command = ["node", str(SCRIPT), str(entry), f"{server}/v1", json.dumps(request)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_what_is_published_is_there_and_typed(built):
    package = json.loads((built / "package.json").read_text())
    assert "dependencies" not in package
    for path in (*package["exports"]["."].values(), package["types"]):
        assert (built / path).is_file(), path


def test_a_stream_is_told_as_events_whose_tree_is_the_answers(built, server, client):
    seen = _node(built, server, ASK)
    whole = client.chat.completions.create(**ASK, extra_body={"forkjoin": {"include_threads": True}})
    message, tree = whole.choices[0].message, seen["finished"]["tree"]
    assert seen["error"] is None
    assert (seen["events"][0], seen["events"][-1]) == ("answer_delta", "finished")
    assert seen["events"].index("forked") < seen["events"].index("joined")
    assert seen["finished"]["content"] == message.content
    assert seen["finished"]["usage"]["forkjoin"] == whole.usage.forkjoin
    assert [(t["title"], t["content"], t["finishReason"]) for t in tree] == [
        (t["title"], t["content"], t["finish_reason"]) for t in message.threads
    ]
    assert [t["completionTokens"] for t in tree] == [t["usage"]["completion_tokens"] for t in message.threads]
    assert seen["texts"] == {str(t["index"]): t["content"] for t in message.threads}


def test_cancelling_stops_the_request_with_its_threads(built, server, client):
    seen = _node(built, server, ASK | {"cancel_at": "forked"})
    assert seen["error"]["name"] == "AbortError"
    assert seen["finished"] is None
    wait_until_idle(server, lambda: client.chat.completions.create(**ASK, max_tokens=1))


def test_threads_are_cancelled_one_by_one(built, server):
    seen = _node(built, server, ENDLESS | {"cancel_threads_at_fork": True})
    assert seen["error"] is None
    assert seen["ends"] == dict.fromkeys("012", "cancelled")
    assert seen["finished"]["finishReason"] == "length"


def test_a_refusal_is_an_error_with_its_status(built, server):
    seen = _node(built, server, ASK | {"forkjoin": {"max_fork": 1}})
    assert (seen["error"]["name"], seen["error"]["status"]) == ("ApiError", 400)
    assert "max_fork" in seen["error"]["message"]
