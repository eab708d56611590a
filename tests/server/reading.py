"""What tests read of a server: its answers, streamed or not, and its metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from scripts.metrics_page import VLLMS, ours

#: Asks for the threads to be shown.
SHOWN = {"include_threads": True}
IDLE_S = 60
#: What is zero on a server without requests; the cache holds no block that a request needs.
IDLE = (
    "forkjoin:threads_running",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
)

#: The types of all events that a response with agents streams.
AGENT_EVENTS = [
    f"response.{name}"
    for name in (
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    )
]


@dataclass
class Answer:
    """One answer, streamed or not; ``entries`` are those of the stream, in order."""

    content: str = ""
    finish_reason: str | None = None
    usage: Any = None
    threads: list[dict] = field(default_factory=list)
    entries: list[dict] = field(default_factory=list)

    @property
    def thread_tokens(self) -> list[int]:
        return [t["usage"]["completion_tokens"] for t in self.threads]


def read_stream(chunks: Iterable[Any]) -> Answer:
    """The chunks of a chat completion put together, and the entries of each thread."""
    answer = Answer()
    for chunk in chunks:
        answer.usage = chunk.usage or answer.usage
        for choice in chunk.choices:
            answer.content += choice.delta.content or ""
            answer.finish_reason = choice.finish_reason or answer.finish_reason
            answer.entries += getattr(choice.delta, "threads", None) or []
    for entry in answer.entries:
        if entry["index"] == len(answer.threads):
            answer.threads.append({"content": ""})
        extend(answer.threads[entry["index"]], entry)
    return answer


def extend(thread: dict, entry: dict) -> None:
    """Put an entry of a stream onto what its thread is so far: ``content`` is appended, all else is set.

    What it waits for is not kept: that is over when the answer is.
    """
    kept = {name: value for name, value in entry.items() if name != "waits_for"}
    thread |= kept | {"content": thread["content"] + entry.get("content", "")}


def read_whole(answer: Any) -> Answer:
    """A chat completion of one choice that was not streamed, its threads shown."""
    (choice,) = answer.choices
    return Answer(choice.message.content, choice.finish_reason, answer.usage, choice.message.threads)


def without_ids(threads: list[dict]) -> list[dict]:
    return [{k: v for k, v in t.items() if k != "id"} for t in threads]


def assert_the_same(streamed: Answer, whole: Answer) -> None:
    """All that a client sees of two answers is the same, but for the ids of threads."""
    assert streamed.content == whole.content
    assert streamed.finish_reason == whole.finish_reason
    assert without_ids(streamed.threads) == without_ids(whole.threads)
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens
    assert streamed.usage.forkjoin == whole.usage.forkjoin


def metrics(address: str) -> dict[str, float]:
    """The sum over its labels of each metric."""
    sums: dict[str, float] = {}
    for line in httpx.get(f"{address}/metrics", timeout=60).text.splitlines():
        if not line.startswith("#"):
            name = line.partition("{")[0].split()[0]
            sums[name] = sums.get(name, 0) + float(line.split()[-1])
    return sums


def by_engine(address: str, name: str) -> dict[str, float]:
    """The sum of the metric ``name`` for each engine."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{address}/metrics", timeout=60).text):
        for sample in family.samples:
            if sample.name == name:
                engine = sample.labels["engine"]
                sums[engine] = sums.get(engine, 0) + sample.value
    return sums


def assert_the_page_is_right(text: str) -> dict[str, Metric]:
    """What a server exposes has every metric of docs/metrics.md with its type and labels; all it has, by name."""
    there = {f.name: f for f in text_string_to_metric_families(text)}
    for row in [*ours(), *VLLMS]:
        family = there.get(row.name.removesuffix("_total"))
        assert family is not None, row.name
        assert family.samples, row.name
        assert family.type == row.kind, row.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(row.labels), row.name
    return there


def wait_until_idle(address: str, step: Callable[[], object]) -> None:
    """Fail if something stays behind; ``step`` makes vLLM take one, for its gauges move in none else."""
    end, left = time.monotonic() + IDLE_S, {}
    while time.monotonic() < end:
        step()
        seen = metrics(address)
        left = {name: seen[name] for name in IDLE}
        if not any(left.values()):
            return
    pytest.fail(f"still there after {IDLE_S} s: {left}")
