"""A server of its own, from its first line to the end of its drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from forkjoin_scheduler.vllm_seam.front_end.shutdown_lines import STEPS
from tests.server.conftest import END_S, start_server, starting_server
from tests.server.reading import metrics
from tests.server.turnstile import Turnstile

pytestmark = pytest.mark.server

ASK = {
    "model": "abacus",
    "temperature": 0,
    "stream": True,
    "messages": [{"role": "user", "content": "a=482*731, b=907*36, c=913*846, d=623*547, e=819*364"}],
}

#: One runs at a time: when the drain begins, some still wait.
NUM_ASKED = 4


def _read_until(text: str, log: Path) -> str:
    """The log, once it has ``text``, or when the time is up."""
    end = time.monotonic() + END_S
    while text not in log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    return log.read_text()


def _is_any_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_says_how_to_ask_and_sigterm_drains_what_is_in_flight(tmp_path):
    engine = Turnstile(tmp_path / "turnstile")
    flags = [*engine.flags, "--max-num-seqs", "1", "--shutdown-timeout", "300"]
    with start_server(tmp_path / "log", *flags, env=engine.env) as (address, process):
        # which is told a moment after the server is ready
        log = _read_until("}'\n", tmp_path / "log")
        curl = log[log.index("curl -sN") :].partition("}'\n")[0] + "}'"
        assert address in curl
        answer = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True, timeout=300)
        events = [line.removeprefix("data: ") for line in answer.stdout.splitlines() if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["usage"]["forkjoin"]["num_threads"] == 2

        answers = asyncio.run(_drained_while_asked(address, process, engine))
        assert [a.count("</Thread>") for a in answers] == [5] * NUM_ASKED
        assert all("total ends in" in a and a.endswith("data: [DONE]") for a in answers)
        assert process.wait(timeout=END_S) == 0
    log = (tmp_path / "log").read_text()
    assert log.count("drained: all requests in flight were answered") == 1
    assert not re.search("Traceback|ERROR|CRITICAL|nanobind|hung up", log)
    assert not [line for line in log.splitlines() if "INFO" in line and any(s in line for s in STEPS)]


async def _drained_while_asked(
    address: str, process: subprocess.Popen[bytes], engine: Turnstile
) -> list[str]:
    """What NUM_ASKED streams say of which the first has begun to fork when SIGTERM comes."""
    answers = [""] * NUM_ASKED

    async def read(i: int, response: httpx.Response) -> None:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                answers[i] += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            elif line == "data: [DONE]":
                answers[i] += line

    url = f"{address}/v1/chat/completions"
    async with httpx.AsyncClient(timeout=600) as client, contextlib.AsyncExitStack() as stack:
        with engine:
            # whose headers come when the request is one that a drain waits for
            asked = [client.stream("POST", url, json=ASK) for _ in range(NUM_ASKED)]
            streams = [await stack.enter_async_context(stream) for stream in asked]
            reading = asyncio.gather(*(read(i, stream) for i, stream in enumerate(streams)))
            await engine.until(lambda: any("</Outlines>" in a for a in answers))
            process.send_signal(signal.SIGTERM)
            while (await client.get(f"{address}/ready")).status_code == 200:
                pass
            refused = await client.post(url, json=ASK)
            assert not all(a.endswith("[DONE]") for a in answers)
        await reading
    assert refused.status_code == 503
    assert "shutting down" in refused.json()["error"]["message"]
    return answers


def test_no_api_server_hangs_up_while_another_has_requests_in_flight(tmp_path):
    engine = Turnstile(tmp_path / "turnstile")
    flags = [*engine.flags, "--api-server-count", "2", "--shutdown-timeout", "300"]
    with start_server(tmp_path / "log", *flags, env=engine.env) as (address, process):
        answer, others = asyncio.run(_asked_of_all_while_one_answers(address, process, engine))
        assert answer.endswith("data: [DONE]\n\n")
        assert {o.status_code for o in others} == {503}
        assert process.wait(timeout=END_S) == 0


async def _asked_of_all_while_one_answers(
    address: str, process: subprocess.Popen[bytes], engine: Turnstile
) -> tuple[str, list[httpx.Response]]:
    """What a stream says during which SIGTERM comes, and what clients of both API servers are told then."""
    url = f"{address}/v1/chat/completions"
    async with contextlib.AsyncExitStack() as stack:
        client, *others = [
            await stack.enter_async_context(httpx.AsyncClient(timeout=300)) for _ in range(1 + 8)
        ]
        for other in others:
            await other.get(f"{address}/ready")
        with engine:
            stream = await stack.enter_async_context(client.stream("POST", url, json=ASK))
            texts: list[str] = []
            reading = asyncio.create_task(_read(stream, texts))
            await engine.until(lambda: bool(texts))
            process.send_signal(signal.SIGTERM)
            while 200 in [(await other.get(f"{address}/ready")).status_code for other in others]:
                pass
            told = [await other.post(url, json=ASK) for other in others]
            assert not reading.done()
        await reading
    return "".join(texts), told


async def _read(stream: httpx.Response, texts: list[str]) -> None:
    async for text in stream.aiter_text():
        texts.append(text)


def test_what_a_drain_has_no_time_for_ends_with_an_error_and_the_server_with_it(tmp_path):
    engine = Turnstile(tmp_path / "turnstile")
    flags, env = [*engine.flags, "--shutdown-timeout", "1"], {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
    with start_server(tmp_path / "log", *flags, env=engine.env | env) as (address, process):
        streamed, whole, followed = asyncio.run(_cut_by_a_drain(address, process, engine))
        assert process.wait(timeout=END_S) == 0
    log = (tmp_path / "log").read_text()
    assert "drained: the time was up for 3 requests, which were cut" in log
    assert "nanobind" not in log
    *_, error, done = streamed.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    assert "before this answer was over" in json.loads(error.removeprefix("data: "))["error"]["message"]
    assert whole.status_code == 503
    assert whole.headers["retry-after"] == "1"
    assert "before this answer was over" in whole.json()["error"]["message"]
    *_, name, data = followed.strip().splitlines()
    assert name == "event: error"
    assert "before this answer was over" in json.loads(data.removeprefix("data: "))["error"]["message"]


async def _cut_by_a_drain(
    address: str, process: subprocess.Popen[bytes], engine: Turnstile
) -> tuple[str, httpx.Response, str]:
    """A stream, an answer in one piece and a stored response that is followed; none of them gets on.

    It is Ctrl-C in a terminal, which all processes hear of.
    """
    url, begun = f"{address}/v1/chat/completions", "vllm:time_to_first_token_seconds_count"
    async with httpx.AsyncClient(timeout=300) as client, contextlib.AsyncExitStack() as stack:
        with engine:
            whole = asyncio.create_task(client.post(url, json=ASK | {"stream": False}))
            stream = await stack.enter_async_context(client.stream("POST", url, json=ASK))
            stored = client.stream("GET", _in_background(address), params={"stream": "true"})
            following = await stack.enter_async_context(stored)
            await engine.until(lambda: metrics(address)[begun] == 3)
            os.killpg(process.pid, signal.SIGINT)
            streamed, followed = await asyncio.gather(stream.aread(), following.aread())
        return streamed.decode(), await whole, followed.decode()


def _in_background(address: str) -> str:
    """The address of a response that streams into the store, which nobody waits for."""
    question = {"model": "abacus", "input": ASK["messages"]}
    with httpx.stream(
        "POST", f"{address}/v1/responses", json=question | {"background": True, "stream": True}, timeout=300
    ) as created:
        event = next(line for line in created.iter_lines() if line.startswith("data: "))
    return f"{address}/v1/responses/{json.loads(event[6:])['response']['id']}"


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda process: process.send_signal(signal.SIGTERM), id="SIGTERM"),
        pytest.param(lambda process: os.killpg(process.pid, signal.SIGINT), id="Ctrl-C in a terminal"),
    ],
)
def test_a_signal_while_the_engine_starts_ends_all_processes_with_status_0(tmp_path, send):
    log, begun = tmp_path / "log", "Initializing a V1 LLM engine"
    with starting_server(log) as (_, process):
        # behind vLLM's lscpu: it is run by a shell, which lets Ctrl-C through to it whatever its parent blocks
        assert begun in _read_until("reserved_cpus=", log)
        send(process)
        # vLLM kills an engine that is being built after 5 s
        assert process.wait(timeout=END_S) == 0
        end = time.monotonic() + END_S
        while _is_any_left(process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert not _is_any_left(process.pid)
    assert "Traceback" not in log.read_text()
    assert "vllm-forkjoin serves" not in log.read_text()
