"""Stitched joins through the real server, whose engine core and worker are processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.engine.renamed import MULTIVERSE, with_tokens
from tests.server import unhurried
from tests.server.conftest import start_server
from tests.server.reading import SHOWN, assert_the_same, metrics, read_stream, read_whole, wait_until_idle

pytestmark = pytest.mark.server

FORKJOIN = Path(sys.executable).parent / "forkjoin"
NAME = "abacus"
ASK: dict[str, Any] = {
    "model": NAME,
    "temperature": 0,
    "messages": [{"role": "user", "content": "a=482*731, b=7*8, c=907*36"}],
    # what the model writes behind a join that it was not trained for has no end
    "max_tokens": 700,
}
TITLES = ["a=482*731", "c=907*36"]


@dataclass
class Server:
    address: str
    log: Path

    def num_tokens(self, text: str) -> int:
        body = {"prompt": text, "add_special_tokens": False}
        return httpx.post(f"{self.address}/tokenize", json=body, timeout=60).json()["count"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return with_tokens(tmp_path_factory.mktemp("multiverse"), MULTIVERSE)


@pytest.fixture(scope="module")
def stitching(model, tmp_path_factory):
    log = tmp_path_factory.mktemp("stitched") / "log"
    flags = ["--model", str(model), "--served-model-name", NAME, "--dialect", "multiverse"]
    # in fp32 greedy choices do not depend on what else is in the batch
    flags += ["--max-model-len", "2048", "--dtype", "float32", *unhurried.FLAGS]
    with start_server(log, *flags, env=unhurried.ENV) as (address, _):
        yield Server(address, log)


@pytest.fixture(scope="module")
def sdk(stitching):
    with openai.OpenAI(base_url=f"{stitching.address}/v1", api_key="none", timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def whole(sdk):
    return sdk.chat.completions.create(**ASK, extra_body={"forkjoin": SHOWN})


@pytest.fixture(scope="module")
def streamed(sdk):
    options = SHOWN | {"include_usage": True}
    asked = ASK | {"stream": True, "stream_options": options, "extra_body": unhurried.taking(0.002)}
    return read_stream(sdk.chat.completions.create(**asked))


def test_engine_core_and_worker_are_processes_of_their_own(stitching, whole):
    log = stitching.log.read_text()
    pids = {kind: set(re.findall(rf"\({kind}[^)]* pid=(\d+)\)", log)) for kind in ("EngineCore", "Worker")}
    assert all(len(found) == 1 for found in pids.values()), pids
    assert pids["EngineCore"] != pids["Worker"]


def test_the_joined_format_is_the_published_engines(whole):
    (choice,) = whole.choices
    first, second = (t["content"] for t in choice.message.threads)
    opening, goal, rest = choice.message.content.partition("</Goal>")
    assert opening.endswith("<Goal>\n<Outline>1: a=482*731</Outline>\n<Outline>2: c=907*36</Outline>\n")
    assert goal
    joined = f"\n<Path>\n1:{first}\n<Path>\n2:{second}\n<Conclusion>\n"
    assert rest.startswith(joined)
    assert first.endswith("</Path>")
    assert second.endswith("</Path>")
    assert rest.removeprefix(joined), "the model goes on behind the join"


def test_the_threads_are_shown_and_compute_what_they_were_asked(whole):
    threads = whole.choices[0].message.threads
    assert [t["title"] for t in threads] == TITLES
    assert [t["finish_reason"] for t in threads] == ["stop", "stop"]
    assert [t["parent_id"] for t in threads] == ["root", "root"]
    # the embedded model's own work: a thread's KV is what it would be without a stitched join
    assert [re.findall(r"\n[ac]:(\d+)", t["content"]) for t in threads] == [[str(482 * 731)], [str(907 * 36)]]


def test_each_generated_token_is_counted_once(whole, stitching):
    (choice,) = whole.choices
    threads = choice.message.threads
    usage = whole.usage
    in_threads = [t["usage"]["completion_tokens"] for t in threads]
    assert in_threads == [stitching.num_tokens(t["content"]) for t in threads]
    opening, _, rest = choice.message.content.partition("</Goal>")
    behind = rest.rpartition("<Conclusion>\n")[2]
    own = stitching.num_tokens(opening + "</Goal>") + stitching.num_tokens(behind)
    own += choice.finish_reason == "stop"  # its end of sequence
    assert usage.completion_tokens == usage.forkjoin["total_tokens"] == own + sum(in_threads)
    assert usage.forkjoin["critical_path_tokens"] == own + max(in_threads)
    assert usage.forkjoin["num_threads"] == 2


def test_the_streamed_deltas_are_the_whole_answer(streamed, whole):
    assert_the_same(streamed, read_whole(whole))


def test_threads_speak_side_by_side(streamed):
    indices = [e["index"] for e in streamed.entries]
    first_end = next(i for i, e in enumerate(streamed.entries) if "finish_reason" in e)
    assert indices[:2] == [0, 1]
    assert set(indices[2:first_end]) == {0, 1}


def test_many_at_once_answer_as_one_alone(sdk, whole, stitching):
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: sdk.chat.completions.create(**ASK), range(6)))
    assert {a.choices[0].message.content for a in answers} == {whole.choices[0].message.content}
    _wait_until_idle(stitching, sdk)


def test_hanging_up_in_a_fork_leaves_nothing(sdk, stitching):
    before = metrics(stitching.address)["forkjoin:forks_total"]
    stream = sdk.chat.completions.create(**ASK, stream=True, stream_options=SHOWN)
    next(c for c in stream if getattr(c.choices[0].delta, "threads", None))
    stream.close()
    assert metrics(stitching.address)["forkjoin:forks_total"] == before + 1
    _wait_until_idle(stitching, sdk)


def test_hanging_up_behind_a_join_leaves_nothing(sdk, stitching):
    stream = sdk.chat.completions.create(**ASK | {"max_tokens": 1500}, stream=True)
    seen = ""
    for chunk in stream:
        seen += chunk.choices[0].delta.content or ""
        if "<Conclusion>" in seen:
            break
    stream.close()
    assert "<Conclusion>" in seen
    _wait_until_idle(stitching, sdk)


def test_an_answer_cut_in_its_threads_leaves_nothing(sdk, stitching):
    answer = sdk.chat.completions.create(**ASK | {"max_tokens": 130}, extra_body={"forkjoin": SHOWN})
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 130)
    assert [t["finish_reason"] for t in answer.choices[0].message.threads] == ["length", "length"]
    _wait_until_idle(stitching, sdk)


def _wait_until_idle(server: Server, sdk: openai.OpenAI) -> None:
    wait_until_idle(server.address, lambda: sdk.completions.create(model=NAME, prompt="x", max_tokens=1))


def test_another_worker_class_is_refused(model):
    flags = ["--dialect", "multiverse", "--worker-cls", "vllm.v1.worker.cpu_worker.CPUWorker"]
    done = subprocess.run(
        [str(FORKJOIN), "serve", str(model), *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("forkjoin: --worker-cls: expected none")
    assert "Traceback" not in done.stdout + done.stderr
    assert "EngineCore" not in done.stdout + done.stderr
