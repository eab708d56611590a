"""The scenarios: which traces, under which loads, on which systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from forkjoin_bench.comparison.traffic import Load
from forkjoin_bench.systems.names import (
    AGAIN,
    AT_ONCE,
    CAPPED,
    CLIENT_HTTP,
    CLIENT_IN_PROCESS,
    FORKJOIN,
    FORKJOIN_N,
    GATE,
    SEQUENTIAL,
    SEQUENTIAL_N,
    SLACK,
    STITCH,
)
from forkjoin_scheduler.errors import UsageError

ALONE = Load("alone", 1)
PUBLISHED = ("threadweaver", "multiverse", "npr-wide", "fork-heavy", "nested", "8x64")
UNEQUAL = ("unequal", "unequal-mixed", "unequal-descending")
COMPARED = (FORKJOIN, STITCH, CLIENT_HTTP, CLIENT_IN_PROCESS)


@dataclass(frozen=True)
class Scenario:
    """``kv_share``: of the KV blocks that the families of its first load need at once; None: ample.

    ``alone``: how many families of each trace are asked, each in a run of its own. ``has_slo``: whether its
    runs count the answers that keep to the SLO of the plan.
    """

    name: str
    traces: tuple[str, ...]
    systems: tuple[str, ...]
    loads: tuple[Load, ...] = (ALONE,)
    alone: int = 1
    kv_share: float | None = None
    has_slo: bool = False


def _idle(*, quick: bool) -> Scenario:
    """One request at a time, on every trace."""
    return Scenario(
        "idle",
        ("8x64", "threadweaver", "fork-heavy") if quick else (*PUBLISHED, "unequal"),
        (*COMPARED, SEQUENTIAL),
        alone=1 if quick else 2,
    )


def _join_stall(*, quick: bool) -> Scenario:
    """Threads of 32 to 256 tokens, joined in three ways."""
    return Scenario(
        "join-stall",
        UNEQUAL[:2] if quick else UNEQUAL,
        (AT_ONCE, FORKJOIN, STITCH),
    )


def _load(*, quick: bool) -> Scenario:
    """Families, so many at a time."""
    levels = ((1, 2), (16, 16)) if quick else ((1, 4), (4, 8), (16, 32), (64, 64))
    return Scenario(
        "load",
        ("families",),
        COMPARED,
        tuple(Load(f"c{at_a_time}", num, at_a_time) for at_a_time, num in levels),
    )


def _mixed(*, quick: bool) -> Scenario:
    """Families among plain requests."""
    num_families, num_plain = (4, 4) if quick else (12, 12)
    return Scenario(
        "mixed",
        ("families",),
        COMPARED,
        (Load("half-plain", num_families, concurrency=num_families, num_plain=num_plain),),
    )


def _group(*, quick: bool) -> Scenario:
    """Samples of one prompt, all at once, as a rollout asks for them."""
    num = 4 if quick else 16
    return Scenario(
        "group",
        ("families",),
        (FORKJOIN, FORKJOIN_N, STITCH, CLIENT_HTTP, SEQUENTIAL, SEQUENTIAL_N),
        (Load(f"group-of-{num}", num, concurrency=num, is_group=True),),
    )


def _pressure(*, quick: bool) -> Scenario:
    """Families that come within 2 s, and a third of the KV cache that they need."""
    gates = (4,) if quick else (3, 4, 5, 6)
    return Scenario(
        "pressure",
        ("families",),
        (*COMPARED, *(f"{GATE}{n}" for n in gates)),
        (Load("12-in-2s", 12, within_s=2.0),),
        kv_share=1 / 3,
    )


def _goodput(*, quick: bool) -> Scenario:
    """Families and plain requests that come at random, under three thread policies."""
    num = 12 if quick else 32
    rates = (1.0,) if quick else (0.5, 1.0, 2.0)
    return Scenario(
        "goodput",
        ("families",),
        (FORKJOIN, CAPPED, SLACK),
        tuple(Load(f"{rate:g}/s", num, within_s=2 * num / rate, num_plain=num) for rate in rates),
        has_slo=True,
    )


def _plain(*, quick: bool) -> Scenario:
    """Requests that do not fork: a server with fork/join loaded, stock, and stock again."""
    levels = ((1, 4), (16, 16)) if quick else ((1, 8), (16, 48), (64, 64))
    return Scenario(
        "plain",
        ("plain",),
        (FORKJOIN, SEQUENTIAL, AGAIN),
        tuple(Load(f"c{at_a_time}", num, at_a_time) for at_a_time, num in levels),
    )


def _smoke(*, quick: bool) -> Scenario:
    """A tiny trace, to see that everything works."""
    return Scenario(
        "smoke",
        ("tiny",),
        (FORKJOIN, STITCH, CLIENT_HTTP, CLIENT_IN_PROCESS, SEQUENTIAL),
    )


MAKERS: dict[str, Callable[..., Scenario]] = {
    "idle": _idle,
    "join-stall": _join_stall,
    "load": _load,
    "mixed": _mixed,
    "group": _group,
    "pressure": _pressure,
    "goodput": _goodput,
    "plain": _plain,
    "smoke": _smoke,
}
#: What a run has unless it is told otherwise; ``goodput`` takes minutes a round, and servers of its own.
DEFAULT = tuple(name for name in MAKERS if name not in ("smoke", "goodput"))


def choose(
    names: Sequence[str], *, quick: bool, loads: Sequence[str] = (), traces: Sequence[str] = ()
) -> list[Scenario]:
    """The scenarios called ``names``, smaller if ``quick``; of their loads and traces those that are named.

    Raises UsageError if a scenario has none of them.
    """
    chosen = []
    for name in names:
        full, small = MAKERS[name](quick=False), MAKERS[name](quick=quick)
        # What is asked for by name is there, quick or not.
        all_loads = {load.name: load for load in (*full.loads, *small.loads)}
        kept_loads = _kept("--loads", name, list(all_loads), loads)
        kept_traces = _kept("--traces", name, full.traces, traces)
        chosen.append(
            replace(
                small,
                loads=tuple(all_loads[n] for n in kept_loads) if loads else small.loads,
                traces=kept_traces if traces else small.traces,
            )
        )
    return chosen


def _kept(flag: str, scenario: str, own: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    kept = tuple(name for name in own if name in wanted)
    if wanted and not kept:
        raise UsageError(f"{flag}: expected one of {scenario}'s, {', '.join(own)}, got {', '.join(wanted)}")
    return kept
