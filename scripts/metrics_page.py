"""Write docs/metrics.md from the metrics' definitions: ``make metrics-page``.

Ours from ``forkjoin_server/operate/metrics.py``; of vLLM's those that mean something else, or more, where
requests fork. A test fails when the page is stale, another when the server's /metrics lacks one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client.metrics import MetricWrapperBase

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_server.operate import label_values, metrics

PAGE = Path(__file__).parents[1] / "docs/metrics.md"


class Row(NamedTuple):
    """One metric, by the name that it is exposed under."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


#: Of vLLM's: name and type, labels beside those that all have, and what it means here.
_VLLMS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    (
        "vllm:num_requests_running",
        "gauge",
        (),
        "Sequences that decode: each running thread is one, a parent that waits for its threads none.",
    ),
    (
        "vllm:num_requests_waiting",
        "gauge",
        (),
        (
            "Waiting threads, and parents that wait for theirs, count too. `forkjoin:requests_waiting` and "
            "`forkjoin:threads_waiting` tell them apart: scale by these."
        ),
    ),
    (
        "vllm:kv_cache_usage_perc",
        "gauge",
        (),
        (
            "KV blocks in use, 1 for all. A prefix that threads share counts once; what ended threads hold "
            "for their join counts until then."
        ),
    ),
    ("vllm:num_preemptions_total", "counter", (), "Each thread that has to give its blocks back counts."),
    (
        "vllm:generation_tokens_total",
        "counter",
        (),
        "Tokens of the transcripts, as clients get them: with what the engine wrote between the threads.",
    ),
    (
        "vllm:request_success_total",
        "counter",
        ("finished_reason",),
        "Requests that have ended. Threads are not counted here.",
    ),
    (
        "vllm:time_to_first_token_seconds",
        "histogram",
        (),
        "To the first token of the answer: before any fork that the model decides on.",
    ),
    (
        "vllm:inter_token_latency_seconds",
        "histogram",
        (),
        (
            "Between tokens of the transcript. While the first thread in turn writes, the others' tokens "
            "wait for theirs, and then come at once: no measure of decoding speed where requests fork."
        ),
    ),
    (
        "vllm:request_queue_time_seconds",
        "histogram",
        (),
        "Until the request first ran, with what `--admission family` lets it wait.",
    ),
    (
        "vllm:e2e_request_latency_seconds",
        "histogram",
        (),
        "From arrival to the last token, threads and joins included: what forking makes shorter.",
    ),
)
VLLMS = tuple(
    Row(name, kind, ("model_name", "engine", *labels), meaning) for name, kind, labels, meaning in _VLLMS
)

LABELS = {
    "reason": "why a thread ended: "
    + ", ".join(f"`{end.value}`" for end in ThreadEnd)
    + "; or a lease: "
    + ", ".join(f"`{end}`" for end in label_values.LEASE_ENDS),
    "outcome": "`decided`, or `undecided` where no answer had a result; of a [kept answer](kept-answers.md): "
    + ", ".join(f"`{outcome}`" for outcome in label_values.KEPT),
    "state": "what a request found of the answer that it goes on from: "
    + ", ".join(f"`{state}`" for state in label_values.LEASE_STATES),
    "kind": "what was malformed, or which limit was met (`thread_` and the reason, of a thread's end)",
    "policy": "what was done about it ([policies](dialects.md#policies)): "
    + ", ".join(f"`{policy.value}`" for policy in Policy)
    + "; `swap`: another text took its place",
    "where": "what was done as it happened: a hook of the scheduler, or something that an API server does "
    "with events (`engine` is empty then); "
    + ", ".join(f"`{setting}`" for setting in label_values.OWN_POLICIES)
    + ": [your own policy](scheduling.md) raised an error",
    "source": "whose drafts they were: `drafter`, vLLM's own, or `family`",
    "engine": "the data-parallel engine, from 0",
    "model_name": "the served model's name",
    "finished_reason": "`stop`, `length`, `abort` and others of vLLM's",
}


def ours() -> Iterator[Row]:
    """Our metrics, in the order of their definition."""
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (described,) = metric.describe()
            name = described.name + ("_total" if described.type == "counter" else "")
            yield Row(name, described.type, metric._labelnames, described.documentation)


def page() -> str:
    """The text of the page."""
    return f"""<!-- Made by `make metrics-page`: change the definitions, or scripts/metrics_page.py. -->
# Metrics

Prometheus metrics on `GET /metrics`. A histogram `x` is exposed as `x_bucket`, `x_sum` and `x_count`. Each
series that the server can have exists from its start, at 0: a rate of it sees the first error too.

## Fork/join's own

{_table(ours())}

## vLLM's, where requests fork

All of vLLM's metrics are there; these read otherwise, or matter more, where requests fork.

{_table(VLLMS)}

## Labels

{_labels()}
"""


def _table(rows: Iterator[Row] | tuple[Row, ...]) -> str:
    lines = [
        f"| `{r.name}` | {r.kind} | {', '.join(f'`{label}`' for label in r.labels)} | {r.meaning} |"
        for r in rows
    ]
    return "\n".join(["| name | type | labels | meaning |", "|---|---|---|---|", *lines])


def _labels() -> str:
    used = dict.fromkeys(label for row in [*ours(), *VLLMS] for label in row.labels)
    return "\n".join(f"- `{label}`: {LABELS[label]}" for label in used)


if __name__ == "__main__":
    PAGE.write_text(page())
