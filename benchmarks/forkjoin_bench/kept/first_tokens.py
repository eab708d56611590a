"""When sub-agents see their first tokens that go on from one long context: ``forkjoin bench first-tokens``.

The same as ``forkjoin bench kept``, on real servers and in seconds: an agent has read a context, other
requests run all the time, and sub-agents then go on from the context. Servers are measured in turn, while
the others are idle.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from forkjoin_bench.arguments import check_at_least
from forkjoin_bench.comparison.deployment import Config, Deployment
from forkjoin_bench.host import host_facts
from forkjoin_bench.inputs.models import Model
from forkjoin_bench.inputs.script import digest, write_script
from forkjoin_bench.kept.counts import CASES, KEPT, LOAD_TOKENS, MAX_MODEL_LEN, QUESTION_TOKENS, STOCK
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.systems.names import FORKJOIN, SEQUENTIAL
from forkjoin_bench.systems.server import Server
from forkjoin_bench.tables import table
from forkjoin_scheduler.errors import UsageError
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of

BLOCK_SIZE = 32
CONTEXT_TOKENS, ANSWER_TOKENS = 4096, 32
#: Answers of the load before the first sub-agent: they write the KV of all blocks over more than once.
BEFORE = 24
#: What the record of the last step may take to reach the file.
SETTLE_S = 0.05
COLUMNS = ("case", "first token, median s", "most", "prefilled tokens, each", "stock / this")


@dataclass(frozen=True)
class Wait:
    """One round of one case: of each sub-agent the seconds to its first token, and what all prefilled."""

    case: str
    round: int
    seconds: list[float]
    prefilled: int


class Traffic:
    """Requests of random tokens; other traffic runs, or waits, so many at a time."""

    def __init__(self, server: Server, num_abreast: int, seed: int) -> None:
        self._server, self._num_abreast, self._rng = server, num_abreast, random.Random(seed)
        self.num_answered = 0

    def tokens(self, num: int) -> list[int]:
        """Ordinary ones: no control token of the embedded model's."""
        return [self._rng.randrange(10, 90) for _ in range(num)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask all the time, for as long as this lasts."""
        asking = [asyncio.create_task(self._ask_on()) for _ in range(self._num_abreast)]
        try:
            yield
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask_on(self) -> None:
        prompt_tokens, tokens = LOAD_TOKENS
        while True:
            await self._server.complete(body(self.tokens(prompt_tokens), tokens))
            self.num_answered += 1

    async def until_answered(self, num: int) -> None:
        """Return when ``num`` more of the load have been answered."""
        end = self.num_answered + num
        while self.num_answered < end:
            await asyncio.sleep(0.01)

    async def first_token_s(self, prompt: list[int], **forkjoin: Any) -> float:
        """Seconds until the first token of an answer is here; the rest is read, too."""
        began, first = time.monotonic(), None
        async for _ in self._server.stream(body(prompt, ANSWER_TOKENS, **forkjoin)):
            first = first or time.monotonic() - began
        assert first is not None
        return first


def body(prompt: list[int], max_tokens: int, **forkjoin: Any) -> dict[str, Any]:
    """A completion of exactly ``max_tokens``; with the field ``forkjoin`` where it says anything."""
    asked: dict[str, Any] = {"model": str(EMBEDDED_MODEL), "prompt": prompt, "max_tokens": max_tokens}
    asked |= {"ignore_eos": True, "temperature": 0}
    return asked | {"forkjoin": {"enabled": False, **forkjoin}} if forkjoin else asked


async def measure(case: str, server: Server, num_agents: int, num_abreast: int, round_: int) -> Wait:
    """Let the agent read, the load run, and the sub-agents come, all at once."""
    await server.reset_prefix_cache()
    traffic = Traffic(server, num_abreast, seed=round_)
    context = traffic.tokens(CONTEXT_TOKENS)
    async with traffic.running():
        read = await server.answer(body(context, ANSWER_TOKENS, **({"keep": 3600} if case == KEPT else {})))
        if case == KEPT and (refused := read["usage"]["forkjoin"]["kept"]["refused"]):
            raise UsageError(
                f"--blocks: expected enough for the context to be kept, but it is not ({refused})"
            )
        goes_on = {"continues": read["id"]} if case == KEPT else {}
        await traffic.until_answered(BEFORE)
        server.take_steps()
        prompts = [[*context, *traffic.tokens(QUESTION_TOKENS)] for _ in range(num_agents)]
        seconds = await asyncio.gather(*(traffic.first_token_s(prompt, **goes_on) for prompt in prompts))
        await asyncio.sleep(SETTLE_S)
        prefilled = num_prefilled(server.take_steps(), {digest(prompt) for prompt in prompts})
    return Wait(case, round_, list(seconds), prefilled)


def num_prefilled(steps: Sequence[dict[str, Any]], digests: set[str]) -> int:
    """Tokens of the prompts with ``digests`` that ``steps`` (of ``vllm_seam/recording.py``) computed."""
    prompt_len: dict[str, int] = {}
    num = 0
    for step in (step for step in steps if "n" in step):
        prompt_len |= {i: length for i, (what, length, _) in step["new"].items() if what in digests}
        for request_id, (start, computed) in step["n"].items():
            num += max(min(start + computed, prompt_len.get(request_id, 0)) - start, 0)
    return num


def rows(waits: Sequence[Wait]) -> list[list[object]]:
    """The table's rows, by ``COLUMNS``: medians over all rounds and sub-agents."""
    seconds = {case: [s for wait in waits if wait.case == case for s in wait.seconds] for case in CASES}
    stock = statistics.median(seconds[STOCK])
    return [
        [
            case,
            f"{statistics.median(seconds[case]):.2f}",
            f"{max(seconds[case]):.2f}",
            f"{sum(wait.prefilled for wait in waits if wait.case == case) / len(seconds[case]):.0f}",
            f"{stock / statistics.median(seconds[case]):.2f}",
        ]
        for case in CASES
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``main``."""
    for flag, default, what in (
        ("--agents", 8, "Sub-agents that go on from the context, all at once."),
        ("--blocks", 600, f"KV blocks of {BLOCK_SIZE} tokens."),
        ("--load", 8, "Other requests that run, or wait, at any time."),
        ("--rounds", 3, "How often each case is measured."),
    ):
        parser.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{what} Default: %(default)s."
        )
    add_out(parser)


def main(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    least = 2 * (CONTEXT_TOKENS + ANSWER_TOKENS) // BLOCK_SIZE
    check_at_least(
        ("--agents", args.agents, 1),
        ("--blocks", args.blocks, least),
        ("--load", args.load, 1),
        ("--rounds", args.rounds, 1),
    )
    before = host_facts()
    waits = asyncio.run(measure_all(args))
    print(
        f"{args.agents} sub-agents on a context of {CONTEXT_TOKENS} tokens, {args.blocks} KV blocks of "
        f"{BLOCK_SIZE} tokens, {args.load} other requests of {LOAD_TOKENS[0]} + {LOAD_TOKENS[1]} tokens at "
        f"any time, {args.rounds} rounds\n"
    )
    print(table(COLUMNS, rows(waits)))
    result = {"command": args.command, "host": before, "waits": [asdict(wait) for wait in waits]}
    print(f"written to {write_json(args.out, 'first-tokens', result)}")


async def measure_all(args: argparse.Namespace) -> list[Wait]:
    """All cases in each round, another one first each time."""
    args.out.mkdir(parents=True, exist_ok=True)
    script = args.out / "script.json"
    write_script(script, (), eos_id=257)
    flags = ("--hf-overrides", f'{{"max_position_embeddings": {MAX_MODEL_LEN}}}')
    model = Model("embedded", EMBEDDED_MODEL, flags)
    config = Config(MAX_MODEL_LEN, args.blocks, BLOCK_SIZE)
    deployment = Deployment(model, config, tokenizer_of(str(EMBEDDED_MODEL)), script, args.out)
    servers = {name: deployment.system(name).engine for name in (FORKJOIN, SEQUENTIAL)}
    waits = []
    async with deployment.running():
        for round_, number in itertools.product(range(args.rounds), range(len(CASES))):
            case = CASES[(round_ + number) % len(CASES)]
            server = servers[SEQUENTIAL if case == STOCK else FORKJOIN]
            assert isinstance(server, Server)
            waits.append(await measure(case, server, args.agents, args.load, round_))
            print(f"round {round_}: {case}: {statistics.median(waits[-1].seconds):.2f} s", flush=True)
    return waits
