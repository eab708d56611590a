"""Runs the same prompts with one drafter, in an engine in this process."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forkjoin_bench.drafted.prompts import PROMPTS, Asked
from forkjoin_bench.progress import working
from forkjoin_bench.vllm_seam.engine import sampling, start_engine
from forkjoin_scheduler.publish.events import Drafted, Event, FamilyEnded
from forkjoin_scheduler.publish.feed import FEEDS
from forkjoin_scheduler.settings import KEY

if TYPE_CHECKING:
    from forkjoin_bench.vllm_seam.engine import LLM

NONE = "none"
SAME = "same"
SMALLER = "smaller"
FAMILY = "+family"
_NGRAM = {"method": "ngram", "prompt_lookup_min": 3, "prompt_lookup_max": 5}
#: What else each drafter is served with.
DRAFTERS: dict[str, dict[str, Any]] = {
    NONE: {},
    SAME: {"method": "draft_model"},
    SMALLER: {"method": "draft_model"},
    "ngram": _NGRAM,
    f"ngram{FAMILY}": _NGRAM,
}
#: Besides ``none``: a smaller model must be named.
DEFAULT = (SAME, "ngram", f"ngram{FAMILY}")


@dataclass(frozen=True)
class Setup:
    """What is measured. ``model``: a name of PROMPTS; ``folder``, ``draft_folder``: of weights."""

    model: str
    folder: str
    draft_folder: str | None
    num_drafts: int
    widths: tuple[int, ...]
    rounds: int
    seed: int


@dataclass(frozen=True)
class Run:
    """One answer."""

    drafter: str
    problems: int
    forks: bool
    steps: int
    seconds: float
    threads: int
    token_ids: tuple[int, ...]
    #: Tokens drafted and those of them that were right, by source; of requests that forked.
    drafted: dict[str, int]
    right: dict[str, int]


def measure(drafter: str, setup: Setup) -> list[Run]:
    """All answers by one drafter; those of the first round, which warms up, are left out."""
    # in float32 the answers are equal, whatever is computed beside them
    llm = start_engine(setup.folder, _flags(drafter, setup), dtype="float32", max_model_len=4096)
    bench = _Bench(llm, drafter)
    chance, runs = random.Random(setup.seed), []
    with working(drafter, (setup.rounds + 1) * len(setup.widths) * 2) as work:
        for round_ in range(setup.rounds + 1):
            for width in setup.widths:
                asked = PROMPTS[setup.model](chance, width)
                for forks in (True, False) if round_ % 2 else (False, True):
                    run = bench.run(asked, forks=forks)
                    work.say(str(run))
                    work.done()
                    runs += [run] if round_ else []
    return runs


def _flags(drafter: str, setup: Setup) -> list[str]:
    """What ``forkjoin serve`` is given for ``drafter``."""
    flags = [] if setup.model == "embedded" else ["--dialect", "explicit"]
    if drafter.endswith(FAMILY):
        flags += ["--draft-from", "family"]
    if not (config := DRAFTERS[drafter]):
        return flags
    if config["method"] == "draft_model":
        config = config | {"model": setup.draft_folder if drafter == SMALLER else setup.folder}
    return [*flags, "--speculative-config", json.dumps(config | {"num_speculative_tokens": setup.num_drafts})]


class _Bench:
    """An engine, its steps, and what its families tell."""

    def __init__(self, llm: LLM, drafter: str) -> None:
        self._llm, self._drafter = llm, drafter
        self._steps = _count_steps(llm)
        self._told: list[Event] = []
        FEEDS.observers.append(lambda event, _: self._told.append(event))

    def run(self, asked: Asked, *, forks: bool) -> Run:
        """Answer ``asked``, with an empty prefix cache."""
        params = sampling(
            temperature=0.0,
            max_tokens=asked.max_tokens,
            extra_args={KEY: asked.forked if forks else asked.sequential},
        )
        self._llm.reset_prefix_cache()
        self._steps.clear()
        self._told.clear()
        began = time.perf_counter()
        messages: Any = [{"role": "user", "content": asked.prompt}]
        (output,) = self._llm.chat(messages, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        drafted = [e for e in self._told if isinstance(e, Drafted)]
        return Run(
            self._drafter,
            asked.width,
            forks,
            sum(self._steps),
            seconds,
            next((e.num_threads for e in self._told if isinstance(e, FamilyEnded)), 0),
            tuple(output.outputs[0].token_ids),
            {e.source: e.num for e in drafted},
            {e.source: e.num_right for e in drafted},
        )


def _count_steps(llm: Any) -> list[bool]:
    """Where each step of the scheduler is noted from now on: whether it computes anything."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    schedule, steps = scheduler.schedule, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        steps.append(output.total_num_scheduled_tokens > 0)
        return output

    scheduler.schedule = counted
    return steps
