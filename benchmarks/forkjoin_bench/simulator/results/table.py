"""Results as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from forkjoin_bench.simulator.results.measures import Result
from forkjoin_bench.simulator.validation import Compared

HEAD = (
    "run", "seconds", "latency", "p95", "families", "plain ms", "p95", "TTFT", "ITL ms", "p99", "good/s",
    "tok/s", "steps", "rows", "prefilled", "again", "peak", "preempted",
)  # fmt: skip


def results_table(results: Mapping[str, Result]) -> str:
    """A row a run."""
    return _aligned([HEAD, *(_row(name, result) for name, result in results.items())])


def _row(name: str, r: Result) -> tuple[str, ...]:
    return (
        name,
        f"{r.seconds:.1f}",
        f"{r.latency_s.mean:.1f}",
        f"{r.latency_s.p95:.1f}",
        f"{r.family_latency_s.mean:.1f}",
        f"{1e3 * r.plain_token_s.mean:.1f}",
        f"{1e3 * r.plain_token_s.p95:.1f}",
        f"{r.ttft_s.mean:.2f}",
        f"{1e3 * r.itl_s.mean:.1f}",
        f"{1e3 * r.itl_s.p99:.1f}",
        f"{r.goodput_per_s:.2f}",
        f"{r.tokens_per_s:.0f}",
        str(r.num_steps),
        f"{r.rows_per_step:.1f}",
        str(r.num_prefilled),
        str(r.prefilled["recomputed"]),
        str(r.peak_blocks),
        str(r.num_preempted),
    )


def goodput_table(by_load: Mapping[tuple[float, str], Sequence[Result]]) -> str:
    """A row for each load, in requests a second, and thread policy: means of the runs."""
    head = ("requests/s", "threads", "in time", "good/s", "plain p95 ms", "families s", "tok/s", "rows")
    return _aligned([head, *(_in_time(rate, name, runs) for (rate, name), runs in by_load.items())])


def _in_time(rate: float, name: str, runs: Sequence[Result]) -> tuple[str, ...]:
    return (
        f"{rate:g}",
        name,
        f"{fmean(r.num_good / r.num_requests for r in runs):.0%}",
        f"{fmean(r.goodput_per_s for r in runs):.3f}",
        f"{1e3 * fmean(r.plain_token_s.p95 for r in runs):.1f}",
        f"{fmean(r.family_latency_s.mean for r in runs):.1f}",
        f"{fmean(r.tokens_per_s for r in runs):.0f}",
        f"{fmean(r.rows_per_step for r in runs):.1f}",
    )


def validation_table(compared: Sequence[Compared]) -> str:
    """A row a case: in the engine, then simulated."""
    head = ("case", "seconds", "error", "mean latency", "error", "steps", "tokens", "preempted")
    return _aligned([head, *map(_validated, compared)])


def _validated(c: Compared) -> tuple[str, ...]:
    real, simulated = c.engine, c.simulated
    return (
        c.case.name,
        f"{real.seconds:.2f} / {simulated.seconds:.2f}",
        f"{simulated.seconds / real.seconds - 1:+.0%}",
        f"{real.mean_latency:.2f} / {simulated.mean_latency:.2f}",
        f"{simulated.mean_latency / real.mean_latency - 1:+.0%}",
        f"{real.num_steps} / {simulated.num_steps}",
        f"{real.num_tokens} / {simulated.num_tokens}",
        f"{real.num_preempted} / {simulated.num_preempted}",
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, " | ".join("-" * w for w in widths))
    return "\n".join(f"| {line} |" for line in lines)
