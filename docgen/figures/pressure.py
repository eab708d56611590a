"""More families than fit into the KV cache, on the real scheduler without a model, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from forkjoin_scheduler.vllm_seam.starts import overview
from tests.engine.fed import Scripted

NUM_FAMILIES, NUM_BLOCKS, NUM_SLOTS = 12, 140, 24
#: Families that have ended before, one after the other: admission has learned from them.
NUM_BEFORE = 8
_PROMPT_TOKENS, _WIDTHS, _THREAD_TOKENS, _CLOSING_TOKENS = 120, (2, 6), (16, 96), 12


@dataclass(frozen=True)
class Family:
    """What became of one: KV blocks that were expected when it was admitted (greedy: none), and its peak."""

    expected: float | None
    peak: int


@dataclass
class Run:
    """One run. ``held``: of each step, the KV blocks that each family holds."""

    num_blocks: int
    held: list[dict[str, int]] = field(default_factory=list)
    families: dict[str, Family] = field(default_factory=dict)
    #: The steps in which vLLM preempted a sequence, once for each.
    preempted_at: list[int] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The families, those admitted first first."""
        return list(dict.fromkeys(name for step in self.held for name in step))


def run(admission: str, num_families: int = NUM_FAMILIES, num_before: int = NUM_BEFORE) -> Run:
    """Let families of 2 to 6 threads arrive at once, and write down what each holds."""
    fed = Scripted(num_blocks=NUM_BLOCKS, max_num_seqs=NUM_SLOTS, admission=admission)
    for i in range(num_before):
        _ask(fed, f"before{i}")
        fed.drain()
    for i in range(num_families):
        _ask(fed, f"f{i}")
    found = Run(NUM_BLOCKS - 1)  # one is vLLM's null block
    preempt = fed.scheduler._preempt_request

    def note(*args: Any, **kwargs: Any) -> None:
        found.preempted_at.append(len(found.held))
        preempt(*args, **kwargs)

    # What a step says to be preempted has parked parents in it, too.
    fed.scheduler._preempt_request = note
    while fed.scheduler.requests:
        fed.step()
        with patch.object(overview, "MAX_S", math.inf):  # all are looked at, however slow the machine is
            rows = [row for row in fed.scheduler.overview()["families"] if row["kv_blocks"]]
        found.held.append({row["request_id"]: row["kv_blocks"] for row in rows})
        found.families |= {row["request_id"]: _family(row, found) for row in rows}
    return found


def _ask(fed: Any, name: str) -> None:
    """Send a family of 2 to 6 threads."""
    author = fed.author
    lengths = [author.rng.randint(*_THREAD_TOKENS) for _ in range(author.rng.randint(*_WIDTHS))]
    fed.add(name, 4, author.fork(lengths), _CLOSING_TOKENS, prompt=author.text(_PROMPT_TOKENS))


def _family(row: dict[str, Any], found: Run) -> Family:
    before = found.families.get(row["request_id"])
    peak = max(row["kv_blocks"], row["peak_kv_blocks"] or 0, before.peak if before else 0)
    expected = row["expected_kv_blocks"]
    return Family(before.expected if before and expected is None else expected, peak)
