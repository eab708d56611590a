"""What sub-agents prefill again that go on from one long context: ``forkjoin bench kept``.

An agent has read a context. Other requests run all the time. Sub-agents then go on from the context, one
after another or all at once. vLLM's prefix cache has lost some of it by then; a kept answer
(``forkjoin.keep``) has not. The scheduler is fed tokens as if a model had sampled them: so all is counted,
and the same on every machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from forkjoin_bench.arguments import check_at_least
from forkjoin_bench.host import host_facts
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.tables import table
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server.start.configuration import EMBEDDED_MODEL

STOCK, CACHED, KEPT = "vLLM's scheduler", "ours, not kept", "ours, kept"
CASES = (STOCK, CACHED, KEPT)
BLOCK_SIZE, MAX_MODEL_LEN = 16, 8192
CONTEXT_TOKENS, ANSWER_TOKENS, QUESTION_TOKENS = 4032, 64, 32
#: Of the load: a request's prompt and answer.
LOAD_TOKENS = (1024, 128)
#: Steps before the first sub-agent comes, between two of them, and after the last.
BEFORE, BETWEEN, AFTER = 400, 100, 400
COLUMNS = (
    "sub-agents",
    "case",
    "prefilled tokens, each",
    "of them of the context",
    "steps to the first token, median",
    "most",
    "load: answers in that time",
    "preempted",
)


@dataclass(frozen=True)
class Count:
    """One run: of each sub-agent the prompt tokens that were computed, and the steps to its first token."""

    arrival: str
    case: str
    prefilled: list[int]
    steps: list[int]
    #: Requests of the load that were answered, and preemptions of any.
    answered: int
    preempted: int

    @property
    def again(self) -> int:
        """Tokens of the context that sub-agents computed again, together."""
        return sum(self.prefilled) - len(self.prefilled) * QUESTION_TOKENS


def measure(case: str, num_agents: int, num_blocks: int, num_abreast: int, *, at_once: bool) -> Count:
    """Let the agent read, the load run, and the sub-agents come."""
    from forkjoin_bench.vllm_seam.agents import CONTEXT, LOAD, loaded

    settings = Settings.of(load("threadweaver"), {}, max_kept_share=0.5)
    fed = loaded(
        num_blocks,
        BLOCK_SIZE,
        stock=case == STOCK,
        load=(num_abreast, *LOAD_TOKENS),
        model=str(EMBEDDED_MODEL),
        max_model_len=MAX_MODEL_LEN,
        hf_overrides={"max_position_embeddings": MAX_MODEL_LEN},  # no model runs
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        additional_config={KEY: settings.model_dump(mode="json")},
    )
    keep = {"keep": 3600} if case == KEPT else {}
    context = fed.send(CONTEXT, fed.tokens(CONTEXT_TOKENS), ANSWER_TOKENS, **keep)
    fed.run(BEFORE)
    agents = [f"agent{n}" for n in range(num_agents)]
    for agent in agents:
        prompt = [*context.all_token_ids, *fed.tokens(QUESTION_TOKENS)]
        fed.send(agent, prompt, ANSWER_TOKENS, continues=CONTEXT)
        fed.run(0 if at_once else BETWEEN)
    fed.run(AFTER)
    asked = [fed.asked[agent] for agent in agents]
    if late := [agent for agent, one in zip(agents, asked, strict=True) if one.first is None]:
        raise UsageError(
            f"--blocks: expected enough for {', '.join(late)} to start beside the load: give more"
        )
    return Count(
        "at once" if at_once else "in turn",
        case,
        [one.computed for one in asked],
        [(one.first or 0) - one.came for one in asked],
        sum(i.startswith(LOAD) and i not in fed._scheduler.requests for i in fed.asked),
        fed.num_preempted,
    )


def cells(count: Count) -> list[object]:
    """``count`` as the table shows it, by ``COLUMNS``."""
    return [
        count.arrival,
        count.case,
        f"{statistics.mean(count.prefilled):.0f}",
        f"{count.again / len(count.prefilled):.0f}",
        f"{statistics.median(count.steps):g}",
        max(count.steps),
        count.answered,
        count.preempted,
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``main``."""
    for flag, default, what in (
        ("--agents", 8, "Sub-agents that go on from the context."),
        ("--blocks", 1000, f"KV blocks of {BLOCK_SIZE} tokens."),
        ("--load", 8, "Other requests that run, or wait, at any time."),
    ):
        parser.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{what} Default: %(default)s."
        )
    add_out(parser)


def main(args: argparse.Namespace) -> None:
    """Count, print, write."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    least = 2 * (CONTEXT_TOKENS + ANSWER_TOKENS) // BLOCK_SIZE
    check_at_least(
        ("--agents", args.agents, 1),
        ("--blocks", args.blocks, least),
        ("--load", args.load, 0),
    )
    before = host_facts()
    counts = [
        measure(case, args.agents, args.blocks, args.load, at_once=at_once)
        for at_once in (False, True)
        for case in CASES
    ]
    print(
        f"{args.agents} sub-agents on a context of {CONTEXT_TOKENS + ANSWER_TOKENS} tokens, {args.blocks} KV "
        f"blocks of {BLOCK_SIZE} tokens, {args.load} other requests of {LOAD_TOKENS[0]} + {LOAD_TOKENS[1]} "
        "tokens at any time\n"
    )
    print(table(COLUMNS, [cells(count) for count in counts]))
    result: dict[str, Any] = {
        "command": args.command,
        "host": before,
        "counts": [asdict(c) | {"again": c.again} for c in counts],
    }
    print(f"written to {write_json(args.out, 'kept', result)}")
