"""The simulator beside the real engine: the same families, steps counted and timed in both.

Families with forced texts run through a real engine in this process, whose every step is written
down. The step-cost model is fitted to the steps of one run; then the other runs are simulated, with
other numbers of families, less KV and other admission, and compared. Seconds are the process's CPU
seconds where ``clock`` says so: on a machine shared with others the wall's say more of the others.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from forkjoin_bench.simulator.cluster import simulate
from forkjoin_bench.simulator.costs import Cost, fitted
from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.gates import FamilyAware, Gate, Greedy
from forkjoin_bench.simulator.workload import Fork, Request, Spoken
from forkjoin_scheduler.policy.admission import Admission
from forkjoin_scheduler.policy.step_cost import Load

GATES: dict[str, Callable[[], Gate]] = {"greedy": Greedy, "family": FamilyAware}
#: Passes over the recorded steps, in random order: the model forgets what it saw long ago.
NUM_PASSES = 5


@dataclass(frozen=True)
class Case:
    """A run: so many families (and plain requests) at once on so many KV blocks."""

    name: str
    num_families: int
    num_blocks: int
    admission: str = "family"
    num_plain: int = 0
    seed: int = 1


FITTED_ON = (Case("fit", 8, 1500, seed=1), Case("fit", 3, 1500, seed=2))
CASES = (
    Case("4 families, ample KV", 4, 1500, seed=11),
    Case("16 families, ample KV", 16, 1500, seed=12),
    Case("8 families and 8 plain requests", 8, 1500, num_plain=8, seed=14),
    Case("12 families, a third of the KV, greedy", 12, 140, "greedy", seed=5),
    Case("12 families, a third of the KV, family", 12, 140, "family", seed=5),
    Case("24 families, a sixth of the KV, greedy", 24, 140, "greedy", seed=15),
    Case("24 families, a sixth of the KV, family", 24, 140, "family", seed=15),
)


@dataclass(frozen=True)
class Seen:
    """What a run came to, counted in the engine or predicted."""

    seconds: float
    mean_latency: float
    num_steps: int
    num_tokens: int
    num_preempted: int


@dataclass(frozen=True)
class Compared:
    """One case in both."""

    case: Case
    engine: Seen
    simulated: Seen

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass
class Recording:
    """The steps of a real run, with what each computed and took."""

    requests: list[Request]
    steps: list[tuple[Load, float]]
    latencies: list[float]
    num_preempted: int
    #: The engine, to be simulated; what its steps take is to be put in.
    engine: Engine

    def seen(self) -> Seen:
        """As a prediction is stated."""
        return Seen(
            sum(seconds for _, seconds in self.steps),
            sum(self.latencies) / max(len(self.latencies), 1),
            len(self.steps),
            sum(load.num_tokens for load, _ in self.steps),
            self.num_preempted,
        )


class RealEngine:
    """The tests' engine on the embedded model (``tests/engine/harness.py``), stepped and timed."""

    def __init__(self, num_blocks: int, clock: Callable[[], float]) -> None:
        from tests.engine.harness import Engine as Harness

        self.harness: Any = Harness(
            num_gpu_blocks_override=num_blocks, max_model_len=2048, max_num_seqs=24, join_ahead_tokens=128
        )
        self.clock = clock
        self._losses: list[object] = []
        #: What the step computes that is under way.
        self._loads: list[Load] = []
        self._count_preemptions()
        self._record_loads()

    def _record_loads(self) -> None:
        scheduler, original = self.harness.scheduler, self.harness.scheduler.schedule

        def schedule(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if tokens := output.num_scheduled_tokens:
                context = sum(scheduler.requests[i].num_computed_tokens for i in tokens)
                self._loads.append(Load(len(tokens), sum(tokens.values()), context))
            return output

        scheduler.schedule = schedule

    def _count_preemptions(self) -> None:
        scheduler, original = self.harness.scheduler, self.harness.scheduler._preempt_request

        def preempt(request: Any, *args: Any, **kwargs: Any) -> None:
            self._losses.append(request.request_id)
            original(request, *args, **kwargs)

        scheduler._preempt_request = preempt

    def spoken(self) -> Spoken:
        """What the dialect injects, in this model's tokens."""
        encode = self.harness.tokenizer.encode
        return Spoken(len(encode("\n<Thread>\n1:")), len(encode("<Thread>\n1:")), len(encode("\n")))

    def _settings(self, case: Case) -> Engine:
        """The same engine, simulated."""
        config = self.harness.core.vllm_config
        return Engine(
            num_blocks=case.num_blocks - 1,  # one is vLLM's null block
            block_size=config.cache_config.block_size,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            join_ahead_tokens=128,
            spoken=self.spoken(),
        )

    def run(self, case: Case) -> Recording:
        """Let the families of ``case`` run to their ends."""
        harness, scheduler = self.harness, self.harness.scheduler
        scheduler._core.settings = scheduler._core.settings.model_copy(update={"admission": case.admission})
        scheduler._gate.admission = Admission()
        harness.llm.reset_prefix_cache()
        harness.steps.clear()
        self._losses.clear()
        asked = [self._family(random.Random(f"{case.seed}/{i}"), case) for i in range(case.num_families)]
        asked += [self._plain(random.Random(f"{case.seed}/p{i}")) for i in range(case.num_plain)]
        ids = [harness.add(prompt, params) for prompt, params, _ in asked]
        steps, latencies = self._drain(set(ids))
        return Recording([r for _, _, r in asked], steps, latencies, len(self._losses), self._settings(case))

    def _drain(self, unfinished: set[str]) -> tuple[list[tuple[Load, float]], list[float]]:
        steps: list[tuple[Load, float]] = []
        latencies, elapsed = [], 0.0
        while self.harness.core.has_unfinished_requests():
            start = self.clock()
            self.harness.step()
            seconds = self.clock() - start
            elapsed += seconds
            steps += [(load, seconds) for load in self._loads]
            self._loads.clear()
            for request_id in [i for i in unfinished if self._is_done(i)]:
                unfinished.remove(request_id)
                latencies.append(elapsed)
        self.harness.core.step()
        self.harness._answers.clear()
        return steps, latencies

    def _is_done(self, request_id: str) -> bool:
        answer = self.harness._answers.get(request_id)
        return answer is not None and answer.finish_reason is not None

    def _family(self, rng: random.Random, case: Case) -> tuple[list[int], Any, Request]:
        """A prompt of about 400 tokens, forks into 2-6 threads of 16-96, and what simulates them."""
        encode = self.harness.tokenizer.encode
        prompt = self.harness.prompt("".join(rng.choice("0123456789") for _ in range(400)))
        width = rng.randint(2, 6)
        root = "".join(_outline(width))
        texts = {
            str(n): rng.choice("abcdef") * rng.randint(16, 96) + "</Thread>" for n in range(1, width + 1)
        }
        after = "</Parallel>\n" + "ok" * rng.randint(1, 10)
        threads = tuple((len(encode(text)),) for text in texts.values())
        body = (len(encode(root)), Fork(threads), len(encode(after)) + 1)  # and the end of sequence
        return prompt, self.harness.scripted(root, texts, after), Request(len(prompt), body)

    def _plain(self, rng: random.Random) -> tuple[list[int], Any, Request]:
        prompt = self.harness.prompt("".join(rng.choice("0123456789") for _ in range(rng.randint(50, 400))))
        num = rng.randint(30, 150)
        params = self.harness.params(
            forkjoin={"enabled": False}, max_tokens=num, extra_args={"script": [[[], [65] * num]], "eos": 0}
        )
        return prompt, params, Request(len(prompt), (num,), may_fork=False)


def _outline(width: int) -> Iterable[str]:
    yield "<Parallel>\n<Outlines>\n"
    yield from (f"<Outline>{n}: x</Outline>\n" for n in range(1, width + 1))
    yield "</Outlines>"


def fit(recordings: Iterable[Recording]) -> Cost:
    """The step-cost model after some passes over the recorded steps."""
    steps, rng = [s for r in recordings for s in r.steps], random.Random(1)
    return fitted(step for _ in range(NUM_PASSES) for step in rng.sample(steps, len(steps)))


def record(cases: Iterable[Case] = CASES, *, uses_wall: bool = False) -> list[tuple[Case, Recording]]:
    """Run what the model is fitted to, then ``cases``, in real engines."""
    clock = time.perf_counter if uses_wall else time.process_time
    engines: dict[int, RealEngine] = {}
    recorded = []
    for case in [*FITTED_ON, *cases]:
        if case.num_blocks not in engines:
            engines[case.num_blocks] = RealEngine(case.num_blocks, clock)
            engines[case.num_blocks].run(replace(FITTED_ON[0], num_families=1))  # the first run warms it up
        recorded.append((case, engines[case.num_blocks].run(case)))
    return recorded


def compare(recorded: Iterable[tuple[Case, Recording]]) -> list[Compared]:
    """Fit to the runs that are for it, simulate the others."""
    recorded = list(recorded)
    cost = fit(recording for case, recording in recorded if case in FITTED_ON)
    return [_compare(case, recording, cost) for case, recording in recorded if case not in FITTED_ON]


def _compare(case: Case, recording: Recording, cost: Cost) -> Compared:
    result = simulate(recording.requests, replace(recording.engine, cost=cost, gate=GATES[case.admission]))
    simulated = Seen(
        result.seconds, result.latency_s.mean, result.num_steps, result.num_computed, result.num_preempted
    )
    return Compared(case, recording.seen(), simulated)
