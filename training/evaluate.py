"""Evaluate exported weights on held-out worksheets: ``python -m training.evaluate --model DIR``.

Every prompt is answered twice by the same weights: with fork and join (the opening, then every
thread in isolation, then the join re-prefilled and continued, as ThreadWeaver publishes it) and
sequentially. Greedy. Writes the results as JSON to ``--json``.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from forkjoin_bench.progress import working
from training import tokenizer as tok
from training.decode import Decoder
from training.model import Llama, ModelConfig
from training.task import Verdict, Worksheet, check, make_worksheet

MAX_TOKENS = 2600
MAX_THREAD_TOKENS = 600
#: Name of the class -> ranges (inclusive) of its long and its short problems.
CLASSES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "1 long": ((1, 1), (0, 0)),
    "2 long": ((2, 2), (0, 0)),
    "3 long": ((3, 3), (0, 0)),
    "4 long": ((4, 4), (0, 0)),
    "5 long": ((5, 5), (0, 0)),
    "6 long": ((6, 6), (0, 0)),
    "short only": ((0, 0), (1, 6)),
    "mixed": ((1, 4), (1, 2)),
}
_OUTLINE = re.compile(r"<Outline>\s*([0-9]+(?:\.[0-9]+)*)\s*:")


@dataclass(frozen=True)
class Answer:
    """A linear transcript and what it cost, in generated or injected tokens."""

    text: str
    total_tokens: int
    critical_path_tokens: int


@dataclass(frozen=True)
class Result:
    """One class of worksheets, decoded one way: shares of 1 and mean tokens."""

    name: str
    mode: str
    num_prompts: int
    right: float
    right_fork_decision: float
    right_num_threads: float
    malformed: float
    critical_path_tokens: float
    total_tokens: float


class Evaluator:
    """Answers worksheets with the weights in ``folder``."""

    def __init__(self, folder: Path, batch_size: int = 128) -> None:
        self.decoder = Decoder(load(folder))
        self.tokenizer, self.batch_size = tok.build(), batch_size
        self.eos = tok.token_id(self.tokenizer, tok.EOS)
        self.fork = tok.token_id(self.tokenizer, "</Outlines>")
        self.thread_end = tok.token_id(self.tokenizer, "</Thread>")

    def sequential(self, sheets: list[Worksheet]) -> list[Answer]:
        """The plain decode of every sheet."""
        prompts = [tok.chat_prompt(s.prompt) for s in sheets]
        outputs = self._generate(prompts, {self.eos}, MAX_TOKENS)
        return [Answer(self._text(ids), len(ids), len(ids)) for ids in outputs]

    def fork_join(self, sheets: list[Worksheet]) -> list[Answer]:
        """Opening, isolated threads, joined continuation; sequential where nothing forks."""
        prompts = [tok.chat_prompt(s.prompt) for s in sheets]
        openings = self._generate(prompts, {self.eos, self.fork}, MAX_TOKENS)
        texts = [self._text(ids) for ids in openings]
        numbers = [
            outline_numbers(t) if o[-1] == self.fork else [] for t, o in zip(texts, openings, strict=True)
        ]
        jobs = [(i, number) for i, found in enumerate(numbers) for number in found]
        starts = [prompts[i] + texts[i] + f"\n<Thread>\n{n}:" for i, n in jobs]
        bodies: list[list[list[int]]] = [[] for _ in sheets]
        threads = self._generate(starts, {self.eos, self.thread_end}, MAX_THREAD_TOKENS)
        for (i, _), ids in zip(jobs, threads, strict=True):
            bodies[i].append(ids)
        forked = [i for i, found in enumerate(numbers) if found]
        joins = {i: "\n" + self._join(numbers[i], bodies[i]) + "\n" for i in forked}
        tails = self._generate([prompts[i] + texts[i] + joins[i] for i in forked], {self.eos}, MAX_TOKENS)
        answers = [Answer(t, len(o), len(o)) for t, o in zip(texts, openings, strict=True)]
        for i, tail in zip(forked, tails, strict=True):
            header = len(tok.encode(self.tokenizer, "<Thread>\n1:"))
            lengths = [header + len(ids) for ids in bodies[i]]
            parent = len(openings[i]) + 2 + len(tail)
            text = texts[i] + joins[i] + self._text(tail)
            answers[i] = Answer(text, parent + sum(lengths), parent + max(lengths))
        return answers

    def _join(self, numbers: list[str], bodies: list[list[int]]) -> str:
        return "".join(
            f"<Thread>\n{n}:{self._text(ids)}" + ("" if ids[-1] == self.thread_end else "\n</Thread>")
            for n, ids in zip(numbers, bodies, strict=True)
        )

    def _text(self, ids: list[int]) -> str:
        wanted = ids[:-1] if ids[-1] == self.eos else ids
        text: str = self.tokenizer.decode(wanted, skip_special_tokens=False)
        return text

    def _generate(self, prompts: list[str], stops: set[int], max_tokens: int) -> list[list[int]]:
        outputs: list[list[int]] = []
        encoded = [tok.encode(self.tokenizer, p) for p in prompts]
        for start in range(0, len(encoded), self.batch_size):
            batch = encoded[start : start + self.batch_size]
            outputs += self.decoder.generate(batch, frozenset(stops), max_tokens)
        return outputs


def outline_numbers(text: str) -> list[str]:
    """The distinct outline numbers after the last ``<Outlines>``, in order."""
    return list(dict.fromkeys(_OUTLINE.findall(text.rpartition("<Outlines>")[2])))


def load(folder: Path) -> Llama:
    """The exported model in ``folder``: its own weights, computed with in float32."""
    raw = json.loads((folder / "config.json").read_text())
    config = ModelConfig(**{k: raw[k] for k in asdict(ModelConfig())})
    tensors = load_file(folder / "model.safetensors")
    model = Llama(config).to(next(iter(tensors.values())).dtype)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items()})
    # Float32 arithmetic: here, bfloat16 costs a kernel compilation for each batch size met.
    return model.eval().float()


def summarise(name: str, mode: str, sheets: list[Worksheet], answers: list[Answer]) -> Result:
    """Judge ``answers`` to ``sheets``."""
    verdicts: list[Verdict] = [check(s, a.text) for s, a in zip(sheets, answers, strict=True)]
    count = len(sheets)
    pairs = list(zip(sheets, verdicts, strict=True))
    return Result(
        name=name,
        mode=mode,
        num_prompts=count,
        right=sum(v.right for v in verdicts) / count,
        right_fork_decision=sum(v.forked == (s.num_threads > 0) for s, v in pairs) / count,
        right_num_threads=sum(v.num_threads == s.num_threads for s, v in pairs) / count,
        malformed=sum(not v.well_formed for v in verdicts) / count,
        critical_path_tokens=sum(a.critical_path_tokens for a in answers) / count,
        total_tokens=sum(a.total_tokens for a in answers) / count,
    )


def sheets_of(name: str, count: int, seed: int) -> list[Worksheet]:
    """``count`` held-out worksheets of class ``name``."""
    rng = random.Random(f"{seed} {name}")
    long, short = CLASSES[name]
    return [
        make_worksheet(rng, num_long=rng.randint(*long), num_short=rng.randint(*short), held_out=True)
        for _ in range(count)
    ]


def main(argv: list[str] | None = None) -> None:
    """Command line of the evaluation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the exported folder")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--num-prompts", type=int, default=200, help="prompts of each class")
    parser.add_argument("--classes", nargs="*", choices=CLASSES, default=list(CLASSES))
    parser.add_argument(
        "--modes", nargs="*", choices=("fork_join", "sequential"), default=["fork_join", "sequential"]
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    evaluator = Evaluator(args.model)
    results: list[Result] = []
    with working("evaluation", len(args.classes) * len(args.modes), console=Console()) as work:
        for name in args.classes:
            sheets = sheets_of(name, args.num_prompts, args.seed)
            for mode in args.modes:
                started = time.monotonic()
                result = summarise(name, mode, sheets, getattr(evaluator, mode)(sheets))
                results.append(result)
                work.say(
                    f"{name:10} {mode:10} right {result.right:.3f} fork {result.right_fork_decision:.3f} "
                    f"threads {result.right_num_threads:.3f} malformed {result.malformed:.3f} tokens "
                    f"{result.critical_path_tokens:.0f}/{result.total_tokens:.0f} "
                    f"({time.monotonic() - started:.0f} s)"
                )
                work.done()
            if args.json:
                args.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
