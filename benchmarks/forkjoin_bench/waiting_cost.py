"""What requests that wait for room cost the scheduler a step: ``python -m forkjoin_bench.waiting_cost``.

So many requests wait while two families decode, in each column the same. Measured is the CPU time of
``schedule`` and ``update_from_output``, without a model, under each scheduling policy of vLLM.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
from typing import TYPE_CHECKING, Any, Literal, get_args

from forkjoin_bench.arguments import check_at_least
from forkjoin_bench.inputs.script import Compiler
from forkjoin_bench.inputs.traces import Author, Family
from forkjoin_bench.inputs.words import Words
from forkjoin_bench.scheduler_cost import BLOCK_SIZE
from forkjoin_bench.tables import table
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.policy.admission import Need
from forkjoin_scheduler.settings import KEY, UNLIMITED, Settings
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of

if TYPE_CHECKING:
    from forkjoin_bench.vllm_seam.fed import Fed

Policy = Literal["fcfs", "priority"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
NUM_STEPS, WARM_UP = 200, 20
NUM_RUNNING, NUM_THREADS = 2, 4
THREAD_TOKENS = 3 * NUM_STEPS


def make_scheduler(policy: Policy) -> Fed:
    """With room for ``NUM_RUNNING`` families, which has learned what each will write."""
    from forkjoin_bench.vllm_seam.fed import fed

    settings = Settings(dialect=load("threadweaver"), limits=UNLIMITED)
    made = fed(
        160,
        model=str(EMBEDDED_MODEL),
        block_size=BLOCK_SIZE,
        max_num_seqs=64,
        scheduling_policy=policy,
        additional_config={KEY: settings.model_dump(mode="json")},
    )
    made._scheduler._gate.admission.learn(Need(NUM_THREADS * THREAD_TOKENS, NUM_THREADS, THREAD_TOKENS))
    return made


def measure(policy: Policy, num_waiting: int) -> float:
    """The median of the steps, in seconds."""
    tokenizer = tokenizer_of(str(EMBEDDED_MODEL))
    compiler, author = Compiler(tokenizer), Author(Words(tokenizer), "waiting")
    fed = make_scheduler(policy)
    fork = author.fork([THREAD_TOKENS] * NUM_THREADS)
    body: tuple[Any, ...] = (author.text(4), fork, author.text(2))
    compiled = compiler.compile(Family("f", author.text(64), body))
    for i in range(num_waiting + NUM_RUNNING):
        fed.ask(compiled, request_id=f"f{i}")
    while fed.step()[0] < NUM_RUNNING * NUM_THREADS:
        pass
    gc.collect()
    gc.disable()  # its pauses are the process's, not a step's
    steps = [fed.step() for _ in range(NUM_STEPS)]
    gc.enable()
    assert {num for num, _ in steps} == {NUM_RUNNING * NUM_THREADS}, sorted({num for num, _ in steps})
    return statistics.median(seconds for _, seconds in steps[WARM_UP:])


def main() -> None:
    """Measure, print."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, nargs="+", default=(0, 200, 2000))
    args = parser.parse_args()
    check_at_least(("--waiting", min(args.waiting), 0))
    rows = [[policy, *(f"{1e6 * measure(policy, n):.0f}" for n in args.waiting)] for policy in POLICIES]
    print("CPU microseconds of the scheduler a step, by requests that wait:\n")
    print(table(["", *map(str, args.waiting)], rows))


if __name__ == "__main__":
    main()
