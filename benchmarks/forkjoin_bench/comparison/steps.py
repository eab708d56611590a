"""What an engine did in a run, counted exactly, from the record of its steps.

The same counting for every system: a request of ours that is a thread, and a request of a client
that stands for one, have the same prompt and so the same context (``script.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from forkjoin_bench.inputs.script import Compiled, Context, ForkFacts, find

#: Why tokens were prefilled. ``trigger``: the sampled token that forks, which has no KV yet (without
#: async scheduling each thread computes it). ``tail``: of the last, partial block of what a branch
#: had when it forked, computed before. ``join``: behind a fork, in a joined context. ``recomputed``:
#: lost to preemption or eviction, and computed before.
CAUSES = ("prompt", "trigger", "header", "tail", "join", "recomputed")


@dataclass(frozen=True)
class Transition:
    """From one step to another: ``steps`` apart, and the seconds between their ends."""

    steps: int
    seconds: float


@dataclass
class Counts:
    """What the steps of a run came to."""

    steps: int = 0
    decoded: int = 0
    prefilled: Counter[str] = field(default_factory=Counter)
    #: Seconds in steps; of them in the scheduler, before and after the model.
    busy_s: float = 0.0
    scheduler_s: float = 0.0
    peak_blocks: int = 0
    peak_requests: int = 0
    #: From the trigger to the threads' first tokens, and from the last thread's end to the next token.
    forks: list[Transition] = field(default_factory=list)
    joins: list[Transition] = field(default_factory=list)


@dataclass
class _Tracked:
    """A request as it goes from prompt to prompt."""

    context: Context | None
    prompt_len: int
    #: Its first tokens that have been computed at some time.
    furthest: int = 0


@dataclass
class _Seen:
    """Where in the steps a context was: its first step, its first token, its last step; and each length."""

    first: int
    last: int
    first_token: int | None = None
    #: Step in which the context had so many tokens computed, for those that end there.
    reached: dict[int, int] = field(default_factory=dict)


def count(
    steps: Iterable[Mapping[str, Any]], families: Iterable[Compiled], block_size: int, num_blocks: int
) -> Counts:
    """Count ``steps``, in which ``families`` were answered, each once."""
    families = list(families)
    working = [step for step in steps if step["n"]]
    contexts = {c.digest: c for family in families for c in family.contexts}
    counts = Counts(steps=len(working))
    requests: dict[str, _Tracked] = {}
    seen: dict[str, _Seen] = {}
    for index, step in enumerate(working):
        for request_id, (context, length, seed) in step["new"].items():
            known = requests.setdefault(request_id, _Tracked(None, 0))
            known.context, known.prompt_len = find(contexts, context, seed), length
        for request_id, (start, num) in step["n"].items():
            # One that ran before the first step of the run is of another run.
            if (request := requests.get(request_id)) is not None:
                _attribute(counts, request, start, start + num, block_size)
                if request.context is not None:
                    _see(seen, request.context, index, start + num)
        began, scheduled, updating, ended = step["t"]
        counts.busy_s += ended - began
        counts.scheduler_s += (scheduled - began) + (ended - updating)
        counts.peak_blocks = max(counts.peak_blocks, num_blocks - step["free"])
        counts.peak_requests = max(counts.peak_requests, len(step["n"]))
    ends = [step["t"][3] for step in working]
    for family in families:
        for fork in family.forks:
            _time(counts, fork, seen, ends)
    return counts


def _attribute(counts: Counts, request: _Tracked, start: int, end: int, block_size: int) -> None:
    """Say of the tokens from ``start`` to ``end`` why they were computed."""
    again = max(min(request.furthest, end) - start, 0)
    counts.prefilled["recomputed"] += again
    start += again
    request.furthest = max(request.furthest, end)
    prompt_end = min(end, request.prompt_len)
    counts.decoded += end - max(start, request.prompt_len) if end > request.prompt_len else 0
    for cause, low, high in _causes(request, block_size):
        counts.prefilled[cause] += max(min(prompt_end, high) - max(start, low), 0)


def _causes(request: _Tracked, block_size: int) -> list[tuple[str, int, int]]:
    """Why each part of a request's prompt would have to be computed, as (cause, from, to)."""
    length, context = request.prompt_len, request.context
    if context is None:  # a job of ours: it computes joined contexts, ahead of the join or recomputed
        return [("join", 0, length)]
    if context.kind == "prompt":
        return [("prompt", 0, length)]
    trigger = context.fork_len - 1
    whole = trigger // block_size * block_size
    own = "header" if context.kind == "thread" else "join"
    return [
        ("recomputed", 0, whole),
        ("tail", whole, trigger),
        ("trigger" if context.kind == "thread" else "join", trigger, trigger + 1),
        (own, trigger + 1, length),
    ]


def _see(seen: dict[str, _Seen], context: Context, index: int, computed: int) -> None:
    here = seen.setdefault(context.digest, _Seen(index, index))
    here.last = index
    here.reached[computed] = index
    if computed >= context.length and here.first_token is None:
        here.first_token = index


def _time(counts: Counts, fork: ForkFacts, seen: Mapping[str, _Seen], ends: list[float]) -> None:
    """Note how long a fork and its join took, as far as they took place."""
    threads = [seen[d] for d in fork.threads if d in seen]
    parent, joined = seen.get(fork.forked_from), seen.get(fork.joined)
    if len(threads) < len(fork.threads) or not threads:
        return
    # The step that computed all but the trigger sampled it.
    triggered = parent.reached.get(fork.fork_len - 1) if parent is not None else None
    first_token = min((t.first_token for t in threads if t.first_token is not None), default=None)
    if triggered is not None and first_token is not None:
        first = min(t.first for t in threads)
        counts.forks.append(Transition(first - triggered, ends[first_token] - ends[triggered]))
    if joined is not None and joined.first_token is not None:
        last = max(t.last for t in threads)
        counts.joins.append(Transition(joined.first_token - last, ends[joined.first_token] - ends[last]))
