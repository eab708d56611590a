"""What a server does right now, from two looks at its ``/metrics``. No I/O, and no clock."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: -?\d+)?")
_MODEL = re.compile(r'model_name="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Look:
    """One look at the metrics."""

    at_s: float
    #: The values of each metric, one for each of its label sets.
    values: dict[str, list[float]]
    models: tuple[str, ...]

    @classmethod
    def of(cls, text: str, at_s: float) -> Look:
        """What ``text``, Prometheus' exposition format, says. What is no finite number is left out."""
        values: dict[str, list[float]] = {}
        models: dict[str, None] = {}
        for line in text.splitlines():
            match = None if line.startswith("#") else _LINE.fullmatch(line)
            if match is None:
                continue
            name, labels, value = match.groups()
            try:
                number = float(value)
            except ValueError:
                continue
            if math.isfinite(number):
                values.setdefault(name, []).append(number)
            models |= dict.fromkeys(_MODEL.findall(labels or ""))
        return cls(at_s, values, tuple(models))

    def total(self, name: str) -> float | None:
        """Over all engines and labels. None if the server has no such metric."""
        values = self.values.get(name)
        return sum(values) if values else None

    def greatest(self, name: str) -> float | None:
        """Of the engines. None if the server has no such metric."""
        return max(self.values.get(name, []), default=None)


@dataclass(frozen=True)
class Load:
    """What a server does; each is None if it does not say. Rates are a second's, since the look before."""

    running: float | None
    threads: float | None
    requests_waiting: float | None
    threads_waiting: float | None
    #: Of the fullest engine, from 0 to 1.
    kv_used: float | None
    tokens_rate: float | None
    prompt_rate: float | None
    forks_rate: float | None
    joins_rate: float | None
    ended_rate: float | None
    refused_rate: float | None
    preempted_rate: float | None
    #: Means since the look before; None if there was no fork, or no join.
    fork_s: float | None
    join_s: float | None
    #: Tokens generated for each decoding step of requests that forked, and have ended since.
    tokens_a_step: float | None
    #: Errors in fork/join's own code since the server started.
    errors: float | None


def load(before: Look, now: Look) -> Load:
    """What the server did between two looks, and does at the later one."""
    seconds = max(now.at_s - before.at_s, 1e-9)

    def grown(name: str) -> float | None:
        later, earlier = now.total(name), before.total(name)
        if later is None:
            return None
        # A server that was started again counts from zero.
        return later - earlier if earlier is not None and earlier <= later else later

    def rate(name: str) -> float | None:
        more = grown(name)
        return None if more is None else more / seconds

    def ratio(upper: str, lower: str) -> float | None:
        above, below = grown(upper), grown(lower)
        return above / below if above is not None and below else None

    return Load(
        running=now.total("vllm:num_requests_running"),
        threads=now.total("forkjoin:threads_running"),
        requests_waiting=now.total("forkjoin:requests_waiting"),
        threads_waiting=now.total("forkjoin:threads_waiting"),
        kv_used=now.greatest("vllm:kv_cache_usage_perc"),
        tokens_rate=rate("vllm:generation_tokens_total"),
        prompt_rate=rate("vllm:prompt_tokens_total"),
        forks_rate=rate("forkjoin:forks_total"),
        joins_rate=rate("forkjoin:joins_total"),
        ended_rate=rate("vllm:request_success_total"),
        refused_rate=rate("forkjoin:requests_refused_total"),
        preempted_rate=rate("vllm:num_preemptions_total"),
        fork_s=ratio("forkjoin:fork_latency_seconds_sum", "forkjoin:fork_latency_seconds_count"),
        join_s=ratio("forkjoin:join_latency_seconds_sum", "forkjoin:join_latency_seconds_count"),
        tokens_a_step=ratio("forkjoin:generated_tokens_total", "forkjoin:critical_path_tokens_total"),
        errors=now.total("forkjoin:internal_errors_total"),
    )
