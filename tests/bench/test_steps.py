from __future__ import annotations

from itertools import count as counter

import pytest

from forkjoin_bench.comparison.steps import Transition, count
from forkjoin_bench.inputs.script import Compiled, digest

BLOCK = 16
NUM_BLOCKS = 100


class Record:
    """Steps as ``recording.py`` writes them, each a second long and a second from the next."""

    def __init__(self) -> None:
        self.steps: list[dict] = []
        self._prompts: dict[str, tuple[str, int]] = {}
        self._clock = counter(0, 2)

    def step(
        self,
        *computed: tuple[str, int, int],
        free: int = NUM_BLOCKS,
        **prompts: tuple[str, int] | tuple[str, int, int],
    ) -> None:
        """``computed``: (request, its first token, how many); ``prompts``: (digest, length, perhaps a seed)."""
        began = float(next(self._clock))
        self.steps.append(
            {
                "t": [began, began + 0.1, began + 0.8, began + 1],
                "new": {k: [*prompt, *[None] * (3 - len(prompt))] for k, prompt in prompts.items()},
                "n": {request: [start, num] for request, start, num in computed},
                "free": free,
                "waiting": 0,
            }
        )

    def decode(self, request: str, start: int, end: int) -> None:
        for position in range(start, end):
            self.step((request, position, 1))


def by_kind(family: Compiled, kind: str) -> list:
    return [c for c in family.contexts if c.kind == kind]


@pytest.fixture
def engine(family) -> Record:
    """What our engine does: threads begin in the step behind the trigger's, on all of their parent's KV."""
    record = Record()
    (prompt,), (joined,), threads = (by_kind(family, k) for k in ("prompt", "join", "thread"))
    fork_len = family.forks[0].fork_len
    record.step(("r", 0, prompt.length), r=(prompt.digest, prompt.length))
    record.decode("r", prompt.length, fork_len - 1)
    a, b = threads
    record.step(
        ("a", fork_len - 1, a.length - fork_len + 1),
        ("b", fork_len - 1, b.length - fork_len + 1),
        free=NUM_BLOCKS - 9,
        a=(a.digest, a.length),
        b=(b.digest, b.length),
    )
    record.step(("a", a.length, 1), ("b", b.length, 1))
    record.step(("a", a.length + 1, 1), ("b", b.length + 1, 1))
    record.decode("b", b.length + 2, b.length + 4)
    record.step(("r", a.length + 2, joined.length - a.length - 2), r=(joined.digest, joined.length))
    return record


def test_no_token_of_the_prefix_is_computed_twice(family, engine):
    counts = count(engine.steps, [family], BLOCK, NUM_BLOCKS)
    prompt = len(family.prompt_ids)
    headers = len("\n<Thread>\n1:") - len("<Thread>") + 1
    join = by_kind(family, "join")[0].length - by_kind(family, "thread")[0].length - 2
    assert dict(counts.prefilled) == {
        "prompt": prompt, "trigger": 2, "header": 2 * headers, "tail": 0, "join": join, "recomputed": 0,
    }  # fmt: skip


def test_a_fork_and_a_join_are_timed_from_step_to_step(family, engine):
    counts = count(engine.steps, [family], BLOCK, NUM_BLOCKS)
    assert counts.forks == [Transition(1, 2.0)]
    assert counts.joins == [Transition(1, 2.0)]


def test_steps_their_seconds_and_the_peak_are_counted(family, engine):
    counts = count(
        [*engine.steps, {"t": [0, 0, 0, 9], "new": {}, "n": {}, "free": 0}], [family], BLOCK, NUM_BLOCKS
    )
    assert counts.steps == len(engine.steps)
    assert counts.busy_s == pytest.approx(len(engine.steps))
    assert counts.scheduler_s == pytest.approx(0.3 * len(engine.steps))
    assert (counts.peak_blocks, counts.peak_requests) == (9, 2)


def test_what_a_client_computes_again_is_the_partial_tail(family):
    thread = by_kind(family, "thread")[0]
    whole = (thread.fork_len - 1) // BLOCK * BLOCK
    record = Record()
    record.step(("t", whole, thread.length - whole), t=(thread.digest, thread.length))
    counts = count(record.steps, [family], BLOCK, NUM_BLOCKS)
    assert counts.prefilled["tail"] == thread.fork_len - 1 - whole
    assert counts.prefilled["recomputed"] == 0


def test_whole_blocks_of_the_prefix_were_lost_to_eviction(family):
    thread = by_kind(family, "thread")[0]
    record = Record()
    record.step(("t", 0, thread.length), t=(thread.digest, thread.length))
    counts = count(record.steps, [family], BLOCK, NUM_BLOCKS)
    assert counts.prefilled["recomputed"] == (thread.fork_len - 1) // BLOCK * BLOCK


def test_what_a_preempted_request_computes_again_is_recomputed(family):
    prompt = by_kind(family, "prompt")[0]
    record = Record()
    record.step(("r", 0, prompt.length), r=(prompt.digest, prompt.length))
    record.decode("r", prompt.length, prompt.length + 3)
    record.step(("r", 0, prompt.length + 4))
    counts = count(record.steps, [family], BLOCK, NUM_BLOCKS)
    assert counts.prefilled["recomputed"] == prompt.length + 3
    assert counts.decoded == 4


def test_jobs_of_ours_compute_joined_contexts(family):
    record = Record()
    record.step(("r#fill0", 40, 10), **{"r#fill0": ("unknown", 50)})
    assert count(record.steps, [family], BLOCK, NUM_BLOCKS).prefilled["join"] == 10


def test_forks_of_samples_are_timed_each_by_its_own_prompt(samples, tokenizer):
    """The second sample is asked for later than the first, and forks later."""
    record, prompt = Record(), digest(tokenizer.encode("ask:"))
    for number, sample in enumerate(samples[:2]):
        first, *threads, _ = sorted(sample.contexts, key=lambda c: ("prompt", "thread", "join").index(c.kind))
        fork_len = sample.forks[0].fork_len
        own, a, b = (f"{number}{name}" for name in "rab")
        record.step((own, 0, fork_len - 1), **{own: (prompt, first.length, number)})
        for _ in range(number):
            record.step()  # nothing runs, so the step is not counted
        record.step(
            *((name, fork_len - 1, t.length - fork_len + 1) for name, t in zip((a, b), threads, strict=True)),
            **{name: (t.digest, t.length, 5) for name, t in zip((a, b), threads, strict=True)},
        )
    counts = count(record.steps, samples[:2], BLOCK, NUM_BLOCKS)
    assert counts.forks == [Transition(1, 2.0), Transition(1, 4.0)]
    assert counts.prefilled["prompt"] == 2 * len("ask:")
