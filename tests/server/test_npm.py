"""The npm SDK, as a client in JavaScript uses it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.server.reading import AGENT_EVENTS, without_ids

pytestmark = pytest.mark.server

SOURCES = Path(__file__).parent / "npm"
HELPER = Path(__file__).parents[2] / "examples" / "gather-threads.mjs"
PROMPT = "a=482*731, b=7*8, c=907*36"
ASK = {
    "model": "abacus",
    "temperature": 0,
    "messages": [{"role": "user", "content": PROMPT}],
    "stream_options": {"include_threads": True, "include_usage": True},
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with the script and the SDK it imports."""
    folder = tmp_path_factory.mktemp("npm") / "package"
    shutil.copytree(SOURCES, folder)
    shutil.copy(HELPER, folder)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=300)
    return folder


def _node(package, script, server, request):
    run = subprocess.run(
        ["node", script, f"{server}/v1", json.dumps(request)],
        cwd=package,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_stream_with_threads_reads_like_any_other(package, server, client):
    seen = _node(package, "stream.mjs", server, ASK)
    plain = {k: v for k, v in ASK.items() if k != "stream_options"}
    whole = client.chat.completions.create(**plain)
    assert (seen["content"], seen["finish_reason"]) == (whole.choices[0].message.content, "stop")
    assert seen["usage"]["forkjoin"] == whole.usage.forkjoin
    for index in (0, 1):
        text = "".join(e.get("content", "") for e in seen["entries"] if e["index"] == index)
        assert f"<Thread>\n{index + 1}:{text}" in seen["content"]


def test_the_helper_with_ours_ends_with_the_threads_of_an_answer_that_is_not_streamed(
    package, server, client
):
    seen = _node(package, "helper.mjs", server, ASK)
    plain = {k: v for k, v in ASK.items() if k != "stream_options"}
    whole = client.chat.completions.create(**plain, extra_body={"forkjoin": {"include_threads": True}})
    message = whole.choices[0].message
    assert seen["message"]["content"] == message.content
    assert without_ids(seen["threads"]) == without_ids(message.threads)


def test_a_response_with_threads_reads_like_any_other(package, server, client):
    ask = {"model": "abacus", "temperature": 0, "input": PROMPT}
    seen = _node(package, "responses.mjs", server, ask | {"forkjoin": {"include_threads": True}})
    transcript = client.responses.create(**ask).output_text
    assert seen["said"]["0"] == seen["snapshot"] == transcript
    assert seen["whole"]["output_text"] == transcript
    for response in (seen["final"], seen["whole"]):
        assert response["output"][0]["content"][0]["text"] == transcript
        texts = [item["content"][0]["text"] for item in response["output"][1:]]
        assert texts == [seen["said"]["1"], seen["said"]["2"]]
        for number, text in enumerate(texts, 1):
            assert f"<Thread>\n{number}:{text}" in transcript


def test_threads_told_as_agents_read_like_any_other_items(package, server, client):
    ask = {"model": "abacus", "temperature": 0, "input": PROMPT}
    seen = _node(package, "responses.mjs", server, ask | {"multi_agent": {"enabled": True}})
    assert seen["said"]["0"] == seen["snapshot"] == client.responses.create(**ask).output_text
    told = [[(i["type"], i["agent"]) for i in seen[name]["output"]] for name in ("final", "whole")]
    assert told[0] == told[1]
    texts = [i["content"][0]["text"] for i in seen["final"]["output"] if i["type"] == "reasoning"]
    assert texts == [seen["said"][place] for place in sorted(seen["said"], key=int)[1:]]
    assert len(texts) == 2


# ---- agents, in the words of the SDK's beta ---------------------------------------------------------------


@pytest.fixture(scope="module")
def sent(server):
    """By type: one event of each shape, as it came."""
    ask = {
        "model": "abacus",
        "temperature": 0,
        "input": PROMPT,
        "stream": True,
        "multi_agent": {"enabled": True},
    }
    found: dict[str, dict[tuple[object, ...], object]] = {}
    with httpx.stream("POST", f"{server}/v1/responses", json=ask, timeout=300) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                item = event.get("item", {})
                shape = (event["agent"]["agent_name"], item.get("type"), item.get("action"))
                found.setdefault(event["type"], {}).setdefault(shape, event)
    return {kind: list(shapes.values()) for kind, shapes in found.items()}


def _ours(event):
    """``event`` without what vLLM writes by itself: see ``sent.ts``.

    Where a text has no logprobs it writes null, and the types leave the field out.
    """
    if "response" in event:
        event = event | {"response": {"output": event["response"]["output"]}}
    return json.loads(json.dumps(event), object_hook=_without_no_logprobs)


def _without_no_logprobs(part):
    return {name: value for name, value in part.items() if (name, value) != ("logprobs", None)}


@pytest.fixture(scope="module")
def complaints(package, sent):
    """By type of event: what TypeScript's compiler, in its strict mode, says of the events."""
    lines, kinds = ['import type { Sent } from "./sent.js";'], ["import"]
    for kind, events in sent.items():
        for event in events:
            kinds.append(kind)
            lines.append(f"export const event{len(lines)}: Sent = {json.dumps(_ours(event))};")
    # An error is expected: else the compiler would take any field.
    (delta, *_) = sent["response.reasoning_text.delta"]
    kinds += ["expected", "extra"]
    lines += ["// @ts-expect-error", f"export const extra: Sent = {json.dumps(delta | {'extra': 1})};"]
    (package / "events.ts").write_text("\n".join(lines))
    command = ["npx", "tsc", "--pretty", "false"]
    run = subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=300, check=False)
    found: dict[str, list[str]] = {}
    for line in run.stdout.splitlines():
        place = re.match(r"events\.ts\((\d+),", line)
        found.setdefault(kinds[int(place[1]) - 1] if place else "elsewhere", []).append(line)
    assert (run.returncode == 0) == (found == {}), run.stdout + run.stderr
    return found


@pytest.mark.parametrize("kind", AGENT_EVENTS)
def test_the_newest_sdks_beta_types_each_event_with_no_field_left_over(sent, complaints, kind):
    assert sent[kind]
    assert complaints.get(kind, []) == []


def test_every_type_of_event_is_among_them(sent, complaints):
    assert sorted(sent) == sorted(AGENT_EVENTS)
    assert complaints.keys() <= set(AGENT_EVENTS), (
        "the compiler must see the events, and refuse one with another field"
    )
