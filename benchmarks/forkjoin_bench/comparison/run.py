"""A run: the chosen scenarios on one model, the systems in turn in every round."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forkjoin_bench.comparison.deployment import Config, Deployment
from forkjoin_bench.comparison.in_time import kept_to
from forkjoin_bench.comparison.measures import Run, num_right_tokens, values_of
from forkjoin_bench.comparison.scenarios import Scenario
from forkjoin_bench.comparison.steps import count
from forkjoin_bench.comparison.traffic import Load, drive
from forkjoin_bench.inputs.models import Model
from forkjoin_bench.inputs.script import Compiled, Compiler, write_script
from forkjoin_bench.inputs.traces import Family, make_samples, make_trace
from forkjoin_bench.inputs.words import Words
from forkjoin_bench.progress import Work, working
from forkjoin_bench.simulator.results.measures import Slo
from forkjoin_bench.systems.base import Engine, System
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of

#: Tokens of context beyond the longest transcript.
SPARE_TOKENS = 32
#: KV cache of one engine: five of them, and their weights, are in memory at once.
MAX_KV_BYTES = 2 << 30
#: What the record of the last step may take to reach the file.
SETTLE_S = 0.05


@dataclass(frozen=True)
class Plan:
    """What to run: ``rounds`` of each scenario; ``systems``, if any, in the place of the scenarios' own.

    ``starts``: how often, each time with engines that are started again, another one first.
    """

    model: Model
    scenarios: Sequence[Scenario]
    rounds: int
    seed: int
    folder: Path
    systems: tuple[str, ...] = ()
    block_size: int = 32
    eager: bool = True
    timeout_s: float = 900.0
    starts: int = 1
    #: What scenarios with an SLO hold their answers to, in milliseconds a token of the critical path.
    slo_itl_ms: float = 30.0


class Bench:
    """Runs a plan; ``runs`` has what was measured so far, and ``save`` is called after each round."""

    def __init__(self, plan: Plan, save: Callable[[Bench], None]) -> None:
        self.plan = plan
        self._save = save
        self.runs: list[Run] = []
        self._work: Work
        self.configs: list[Config] = []
        #: Seconds that engines took to start, by the first system that each answers for.
        self.start_s: dict[str, list[float]] = {}
        self._tokenizer: Tokenizer = tokenizer_of(str(plan.model.folder))
        #: Families of each trace, and samples of its first prompt, as many as any scenario asks for.
        self._traces: dict[str, list[Compiled]] = {}
        self._samples: dict[str, list[Compiled]] = {}
        self._compile()

    def _compile(self) -> None:
        """Fill ``_traces`` and ``_samples``."""
        families, samples = {"plain": 1, "tiny": 1}, dict[str, int]()
        for scenario in self.plan.scenarios:
            for load in scenario.loads:
                num = scenario.alone if load.concurrency == load.num_families == 1 else load.num_families
                wanted = samples if load.is_group else families
                for trace in scenario.traces:
                    wanted[trace] = max(wanted.get(trace, 0), num)
                families["plain"] = max(families["plain"], load.num_plain)
        self._traces = self._compiled(make_trace, families)
        self._samples = self._compiled(make_samples, samples)

    def _compiled(
        self, make: Callable[[str, int, Words, int], list[Family]], wanted: Mapping[str, int]
    ) -> dict[str, list[Compiled]]:
        words, compiler = Words(self._tokenizer), Compiler(self._tokenizer)
        return {
            name: [compiler.compile(f) for f in make(name, num, words, self.plan.seed)]
            for name, num in wanted.items()
        }

    def _families(self, trace: str, *, is_group: bool) -> list[Compiled]:
        """What a load chooses from."""
        return (self._samples if is_group else self._traces)[trace]

    async def run(self) -> None:
        """Measure everything. Scenarios that need other engines than the ones before get them.

        SIGTERM cancels it, as SIGINT does: the engines are stopped first.
        """
        this = asyncio.current_task()
        assert this is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        script = self.plan.folder / "script.json"
        eos = next(t for t in map(self._tokenizer.token_id, ("<|end|>", "<|im_end|>")) if t is not None)
        compiled = (*self._traces.values(), *self._samples.values())
        write_script(script, (f for families in compiled for f in families), eos)
        ample = [s for s in self.plan.scenarios if s.kv_share is None]
        groups = [ample] if ample else []
        groups += [[s] for s in self.plan.scenarios if s.kv_share is not None]
        self.configs = [self._config(group) for group in groups]
        with working("bench", self._num_runs()) as self._work:
            for start in range(self.plan.starts):
                for group, config in zip(groups, self.configs, strict=True):
                    await self._run_group(group, config, script, start)

    def _num_runs(self) -> int:
        """All that will be measured, without what warms up."""
        each = (len(list(self._tasks(s))) * len(self.plan.systems or s.systems) for s in self.plan.scenarios)
        return self.plan.starts * self.plan.rounds * sum(each)

    def _config(self, group: Sequence[Scenario]) -> Config:
        """Engines for the scenarios of ``group``: one config, so that they share them."""
        block_size = self.plan.block_size
        kinds = {(trace, load.is_group) for s in group for load in s.loads for trace in s.traces}
        of_group = [f for trace, is_group in kinds for f in self._families(trace, is_group=is_group)]
        if any(load.num_plain for s in group for load in s.loads):
            of_group += self._traces["plain"]
        of_group += self._traces["tiny"]
        longest = max(len(f.prompt_ids) + len(f.token_ids) for f in of_group) + SPARE_TOKENS
        at_once = max(load.num_plain + load.num_families for s in group for load in s.loads)
        need = sum(sorted((f.ideal_blocks(block_size) for f in of_group), reverse=True)[:at_once])
        # With less, stitched joins are refused at start.
        least = 2 * -(-longest // block_size) + 3  # one of them is vLLM's null block
        share = group[0].kv_share
        most = MAX_KV_BYTES // (self.plan.model.kv_token_bytes * block_size)
        num_blocks = max(min(2 * need, most) if share is None else round(share * need), least)
        return Config(longest, num_blocks, block_size, enforce_eager=self.plan.eager)

    async def _run_group(self, group: Sequence[Scenario], config: Config, script: Path, start: int) -> None:
        deployment = Deployment(
            self.plan.model, config, self._tokenizer, script, self.plan.folder, self.plan.slo_itl_ms
        )
        chosen = {s.name: list(self.plan.systems or s.systems) for s in group}
        systems = {n: deployment.system(n) for names in chosen.values() for n in names}
        self._work.say(f"starting {len(systems)} systems: {config}")
        async with deployment.running(first=start) as engines:
            self._note_starts(engines, systems)
            for system in systems.values():
                await self._measure(system, group[0], "tiny", Load("warm-up", 1), self._traces["tiny"][:1], 0)
            self.runs = [run for run in self.runs if run.load != "warm-up"]
            for scenario in group:
                await self._run_scenario(scenario, [systems[n] for n in chosen[scenario.name]], start)

    def _note_starts(self, engines: Sequence[Engine], systems: Mapping[str, System]) -> None:
        for engine in engines:
            if engine.start_s is not None:
                name = next(n for n, system in systems.items() if system.engine is engine)
                self.start_s.setdefault(name, []).append(round(engine.start_s, 1))

    async def _run_scenario(self, scenario: Scenario, systems: Sequence[System], start: int) -> None:
        first = start * self.plan.rounds
        for round_ in range(first, first + self.plan.rounds):
            for number, (trace, load, requests) in enumerate(self._tasks(scenario)):
                for i in range(len(systems)):  # each comes first, second … as often as the others
                    system = systems[(i + round_ + number) % len(systems)]
                    await self._measure(system, scenario, trace, load, requests, round_)
                    self._work.done()
            self._save(self)

    def _tasks(self, scenario: Scenario) -> Iterator[tuple[str, Load, list[Compiled]]]:
        for trace in scenario.traces:
            for load in scenario.loads:
                if load.name == "alone":
                    for family in self._traces[trace][: scenario.alone]:
                        yield trace, load, [family]
                else:
                    families = self._families(trace, is_group=load.is_group)
                    yield trace, load, load.order(families, self._traces["plain"])

    async def _measure(
        self,
        system: System,
        scenario: Scenario,
        trace: str,
        load: Load,
        requests: list[Compiled],
        round_: int,
    ) -> None:
        await system.engine.reset_prefix_cache()
        system.engine.take_steps()
        cpu_before = system.engine.cpu_s
        outcome = await drive(system, load, requests, self.plan.timeout_s)
        cpu_after = system.engine.cpu_s
        await asyncio.sleep(SETTLE_S)
        counts = count(system.engine.take_steps(), requests, self.plan.block_size, system.engine.num_blocks)
        values = values_of(outcome, counts, requests, self.plan.block_size)
        if scenario.has_slo:
            values |= kept_to(Slo(token_s=self.plan.slo_itl_ms / 1e3), outcome, requests)
        num_tokens = num_right_tokens(outcome, requests)
        if cpu_before is not None and cpu_after is not None and num_tokens:
            ms_a_token = 1e3 / num_tokens
            values["cpu_ms"] = ms_a_token * (cpu_after.all - cpu_before.all)
            values["front_cpu_ms"] = ms_a_token * (cpu_after.front - cpu_before.front)
        run = Run(
            scenario.name,
            trace,
            load.name,
            system.name,
            round_,
            tuple(r.family.name for r in requests),
            values,
            [a.seconds for a in outcome.answers if a.is_right],
            [f"{a.family}: {a.error}" for a in outcome.answers if not a.is_right],
        )
        self.runs.append(run)
        self._work.say(_progress(run))


def _progress(run: Run) -> str:
    values = run.values
    line = f"{run.scenario} {run.trace} {run.load} round {run.round} {run.system}: {values['wall_s']:.2f} s"
    line += f", {values['steps']:g} steps, {values['prefilled']:g} prefilled"
    return line + (f", {len(run.errors)} WRONG: {run.errors[0]}" if run.errors else "")
