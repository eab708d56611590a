"""How long a join makes the answer wait: ``python -m benchmarks.join_stall``.

The stall is the time from the end of the step in which the last thread ended to the end of the step
in which the branch that waits for it generates its next token. One request at a time on the embedded
model; each thread is forced to write a trace of a given length, and the model goes on by itself
behind the join. Three ways to join, in turn in each round, the prefix cache emptied before each:

- ``at once``: re-prefill, all behind the first thread when the last has ended (--join-ahead-tokens 0);
- ``ahead``: re-prefill, threads that have ended prefilled while others decode;
- ``stitched``: Multiverse's join, which moves KV (with the embedded model's own tags).

Prints a table, medians over the rounds with (least-greatest). The ratio is of ``ahead`` to
``at once`` (``stitched`` to ``at once``) in the same round. Fails if two ways or rounds that
should give one text do not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.engine import host_facts, start_engine
from forkjoin_scheduler.dialect import Dialect
from forkjoin_scheduler.feed import FEEDS, Event
from forkjoin_scheduler.patterns import fill
from forkjoin_scheduler.settings import KEY
from forkjoin_server.cli import EMBEDDED_MODEL, serve_args

if TYPE_CHECKING:
    import torch
    from vllm import LLM, SamplingParams

LENGTHS = (32, 64, 96, 128, 160, 192, 224, 256)
#: Where in the outline the long threads stand: last (the first thread is the first to end), here and
#: there, first (nothing can be prefilled before the last thread ends).
ORDERS = ("ascending", "mixed", "descending")
AT_ONCE, AHEAD, STITCHED = "at once", "ahead", "stitched"
#: Tokens that the model writes by itself behind the join.
NUM_FREE = 16
SUFFIX_TOKENS = 48
#: What threads write: like what the embedded model was trained on.
LINE = "y6A:q8*6=48+0=48A8;p4*6=24+4=28B8;C2\n"
MULTIVERSE = Path(__file__).parents[1] / "configs" / "dialects" / "multiverse.yaml"
PROMPT = "<|user|>a=48*36, b=47*29<|assistant|>"
#: Multiverse's tags, and those of the embedded model's vocabulary.
TAGS = {"<Goal>": "<Outlines>", "</Goal>": "</Outlines>", "<Path>": "<Thread>", "</Path>": "</Thread>"}
COLUMNS = (
    "lengths",
    "join",
    "stall ms",
    "stall / at once",
    "steps",
    "tokens in them",
    "prefilled ahead",
    "answer s",
    "its steps",
)


@dataclass(frozen=True)
class Run:
    """One answer; ``stall`` counts from the end of the last thread to the next token behind the join.

    ``engine_ms`` is the stall by the scheduler's own clock, which for a stitched join starts a step
    later, when the end of the last thread has its KV.
    """

    order: str
    way: str
    round: int
    stall_ms: float
    engine_ms: float
    stall_steps: int
    stall_tokens: int
    join_tokens: int
    ahead_tokens: int
    seconds: float
    steps: int
    text: str


@dataclass(frozen=True)
class Step:
    """One step of the engine: when it ended, the tokens computed by request, and what it told."""

    end: float
    computed: dict[str, int]
    events: list[Event]

    def tells(self, kind: str) -> bool:
        """Whether an event of this kind came out of it."""
        return any(e["type"] == kind for e in self.events)


class Bench:
    """An engine, stepped by hand."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        core: Any = llm.llm_engine.engine_core
        self._scheduler = core.engine_core.scheduler
        self.dialect: Dialect = self._scheduler._settings.dialect
        self._encode: Callable[[str], list[int]] = self._scheduler._tokenizer.encode
        self._computed: dict[str, int] = {}
        self._events: list[Event] = []
        self._num_asked = 0
        FEEDS.observers.append(lambda event: self._events.append(event))
        self._record()

    def _record(self) -> None:
        schedule = self._scheduler.schedule

        def recorded(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            self._computed = dict(output.num_scheduled_tokens)
            return output

        self._scheduler.schedule = recorded

    def _params(self, lengths: list[int]) -> SamplingParams:
        """What makes the model fork into threads of ``lengths`` tokens, their end tags included."""
        from vllm import SamplingParams

        dialect, encode = self.dialect, self._encode
        assert dialect.outline is not None
        outlines = "".join(f"<Outline>{n}: x</Outline>\n" for n in range(1, len(lengths) + 1))
        root = encode(f"<think>\n<Parallel>\n{dialect.outline.opens}\n{outlines}{dialect.trigger}")
        trace = encode(LINE * (max(lengths) // len(encode(LINE)) + 1))
        script: list[list[Any]] = [[[], root]]
        for n, length in enumerate(lengths, 1):
            header = encode(fill(dialect.thread.header, n=str(n)))
            script.append([header, [*trace[: length - 1], *encode(dialect.thread.end or "")]])
        script.append([encode(f"{dialect.thread.end}{dialect.thread.tail}{dialect.join.text}"), None])
        return SamplingParams(
            temperature=0.0,
            max_tokens=len(root) + sum(lengths) + NUM_FREE,
            ignore_eos=True,
            extra_args={KEY: {}, "script": script},
        )

    def run(self, lengths: list[int], order: str, way: str, round_: int, ahead_tokens: int = 0) -> Run:
        """Ask once and measure."""
        # What the flag --join-ahead-tokens sets, changed between requests: both ways on one engine.
        self._scheduler._settings = self._scheduler._settings.model_copy(
            update={"join_ahead_tokens": ahead_tokens}
        )
        self._llm.reset_prefix_cache()
        params = self._params(lengths)
        start = time.perf_counter()
        steps, text = self._steps(params)
        told = [e for step in steps for e in step.events]
        written = [e["num_tokens"] for e in told if e["type"] == "thread_ended"]
        assert sorted(written) == sorted(lengths), f"expected threads of {lengths} tokens, got {written}"
        last = max(i for i, step in enumerate(steps) if step.tells("thread_ended"))
        after = next(i for i, step in enumerate(steps) if step.tells("join_latency"))
        stalled = steps[last + 1 : after + 1]
        return Run(
            order,
            way,
            round_,
            stall_ms=1e3 * (steps[after].end - steps[last].end),
            engine_ms=1e3 * sum(e["seconds"] for e in told if e["type"] == "join_latency"),
            stall_steps=len(stalled),
            stall_tokens=sum(sum(step.computed.values()) for step in stalled),
            join_tokens=sum(e["prefilled_tokens"] for e in told if e["type"] == "joined"),
            ahead_tokens=sum(e["prefilled_tokens"] for e in told if e["type"] == "joined_ahead"),
            seconds=steps[-1].end - start,
            steps=len(steps),
            text=text,
        )

    def _steps(self, params: SamplingParams) -> tuple[list[Step], str]:
        """The steps of one request, and its text."""
        from vllm.inputs import TokensPrompt

        engine = self._llm.llm_engine
        self._num_asked += 1
        prompt = TokensPrompt(prompt_token_ids=self._encode(PROMPT))
        engine.add_request(f"{self.dialect.name}-{self._num_asked}", prompt, params)
        steps: list[Step] = []
        text = ""
        while engine.has_unfinished_requests():
            self._events.clear()
            for output in engine.step():
                text = output.outputs[0].text
            steps.append(Step(time.perf_counter(), self._computed, list(self._events)))
        return steps, text


def reprefilling(*, eager: bool) -> Bench:
    """An engine as `forkjoin serve` starts it."""
    return Bench(start_engine(**_options(eager=eager)))


def stitching(*, eager: bool) -> Bench:
    """Another one, of Multiverse's dialect, written with the tags that the embedded model has."""
    text = MULTIVERSE.read_text()
    for theirs, own in TAGS.items():
        text = text.replace(theirs, own)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        served = serve_args(["--dialect", file.name])
    from vllm import LLM

    # start_engine, which was called before, has prepared this process.
    return Bench(
        LLM(
            model=str(EMBEDDED_MODEL),
            scheduler_cls=served.scheduler_cls,
            worker_cls=served.worker_cls,
            additional_config=served.additional_config,
            **_options(eager=eager),
        )
    )


def _options(*, eager: bool) -> dict[str, Any]:
    """In fp32 what the model chooses does not depend on how its context was prefilled."""
    return {
        "dtype": "float32",
        "enforce_eager": eager,
        "logits_processors": [_replay_class()],
        "disable_log_stats": False,
    }


def _replay_class() -> type:
    """A logits processor that makes a request write its script.

    ``extra_args["script"]`` is [[end of the prompt, tokens to write], …]: the longest end that fits
    applies; None: the model decides.
    """
    # vLLM reads these when it is imported, which is here.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

    class Replay(AdapterLogitsProcessor):
        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., torch.Tensor] | None:
            script = (params.extra_args or {}).get("script")
            if script is None:
                return None

            def force(prompt_ids: list[int], output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
                end = list(prompt_ids[-SUFFIX_TOKENS:])
                fitting = [e for e in script if end[len(end) - len(e[0]) :] == e[0]]
                tokens = max(fitting, key=lambda e: len(e[0]))[1]
                if tokens is not None and len(output_ids) < len(tokens):
                    logits[:] = float("-inf")
                    logits[tokens[len(output_ids)]] = 0.0
                return logits

            return force

    return Replay


def ordered(lengths: list[int], order: str) -> list[int]:
    """``lengths`` as the outline has them."""
    if order == "mixed":
        return random.Random(1).sample(sorted(lengths), len(lengths))
    return sorted(lengths, reverse=order == "descending")


def measure(args: argparse.Namespace) -> list[Run]:
    """The runs of all rounds; round 0, which warms up, is left out."""
    linear = reprefilling(eager=args.eager)
    ways = {AT_ONCE: (linear, 0), AHEAD: (linear, args.ahead)}
    if args.stitched:
        ways[STITCHED] = (stitching(eager=args.eager), 0)
    runs = []
    for round_ in range(args.rounds + 1):
        names = list(ways)
        for order in args.orders:
            for i in range(len(names)):  # each way comes first, second … as often as the others
                way = names[(i + round_) % len(names)]
                bench, ahead_tokens = ways[way]
                runs.append(bench.run(ordered(args.lengths, order), order, way, round_, ahead_tokens))
                print(_progress(runs[-1]), file=sys.stderr)
    check_texts(runs)
    return [run for run in runs if run.round]


def check_texts(runs: list[Run]) -> None:
    """Raise AssertionError unless all re-prefilled joins of an order gave one text, and all stitched ones."""
    for order in {run.order for run in runs}:
        for is_stitched in (False, True):
            texts = {r.text for r in runs if r.order == order and (r.way == STITCHED) == is_stitched}
            assert len(texts) <= 1, f"{order}: {len(texts)} texts of one trace"


def summarise(runs: list[Run], order: str, way: str) -> dict[str, Any]:
    """A row of the table: medians over the rounds, and (least, greatest)."""
    own = [r for r in runs if (r.order, r.way) == (order, way)]
    base = {r.round: r.stall_ms for r in runs if (r.order, r.way) == (order, AT_ONCE)}
    counts = ("stall_steps", "stall_tokens", "join_tokens", "ahead_tokens", "steps")
    return {
        "order": order,
        "way": way,
        "rounds": len(own),
        "stall_ms": _spread([r.stall_ms for r in own]),
        "engine_ms": _spread([r.engine_ms for r in own]),
        "stall_over_at_once": _spread([r.stall_ms / base[r.round] for r in own]),
        "seconds": _spread([r.seconds for r in own]),
        **{name: statistics.median(getattr(r, name) for r in own) for name in counts},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """``rows`` as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [
            row["order"],
            row["way"],
            _cell(row["stall_ms"], 1),
            _cell(row["stall_over_at_once"], 2),
            *(f"{row[name]:g}" for name in ("stall_steps", "stall_tokens", "ahead_tokens")),
            _cell(row["seconds"], 2),
            f"{row['steps']:g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _progress(run: Run) -> str:
    return f"round {run.round}, {run.order}, {run.way}: {run.stall_ms:.1f} ms, {run.stall_tokens} tokens"


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def _cell(spread: dict[str, float], digits: int) -> str:
    median, least, greatest = (f"{spread[k]:.{digits}f}" for k in ("median", "least", "greatest"))
    return f"{median} ({least}-{greatest})"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of each thread")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    parser.add_argument("--ahead", type=int, default=128, help="--join-ahead-tokens of the second way")
    parser.add_argument("--stitched", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--eager",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="not compiled; compiling takes minutes on CPUs, and again for sizes that come up in a round",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table and every run here")
    args = parser.parse_args()
    if min(args.rounds, args.ahead, *args.lengths) < 1 or len(args.lengths) < 2:
        parser.error("expected at least 1 round, 1 token a thread and --ahead 1, and two threads")
    before = host_facts()
    runs = measure(args)
    ways = [way for way in (AT_ONCE, AHEAD, STITCHED) if any(r.way == way for r in runs)]
    rows = [summarise(runs, order, way) for order in args.orders for way in ways]
    print(f"threads of {', '.join(map(str, sorted(args.lengths)))} tokens; one request at a time; greedy;")
    print(f"median (least-greatest) of {args.rounds} rounds; --join-ahead-tokens {args.ahead} in {AHEAD!r}")
    print(table(rows))
    for name, fact in before.items():
        print(f"{name}: {fact}")
    if args.json is not None:
        result = {
            "arguments": {k: v for k, v in vars(args).items() if k != "json"},
            "host": before,
            "load_average_after": host_facts()["load_average"],
            "rows": rows,
            "runs": [asdict(run) for run in runs],
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {args.json}")


if __name__ == "__main__":
    main()
