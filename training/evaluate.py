"""Evaluate exported weights on held-out worksheets: ``python -m training.evaluate --model DIR``.

Every prompt is answered twice by the same weights: with fork and join (the opening, then every
thread in isolation, then the join re-prefilled and continued, perhaps to the next fork, as
ThreadWeaver publishes it) and sequentially. Greedy. Writes the results as JSON to ``--json``.
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
from training.prompts import make_chain
from training.task import LETTERS, Verdict, Worksheet, check

MAX_TOKENS = 3000
MAX_THREAD_TOKENS = 600
#: More than any worksheet needs: what forks without end is not right.
MAX_FORKS = 4


@dataclass(frozen=True)
class Kind:
    """Worksheets of one class: one of ``levels`` (long problems of each), and so many short problems."""

    levels: tuple[tuple[int, ...], ...]
    num_short: tuple[int, int] = (0, 0)
    any_letters: bool = False


CLASSES = {
    "short only": Kind(((0,),), num_short=(1, 8)),
    **{f"{n} long": Kind(((n,),)) for n in range(1, 9)},
    "mixed": Kind(((1,), (2,), (3,), (4,)), num_short=(1, 2)),
    "2 + 2": Kind(((2, 2),)),
    "2 + 3": Kind(((2, 3),)),
    "3 + 3": Kind(((3, 3),)),
    "4 + 4": Kind(((4, 4),)),
    "2 + 2 + 2": Kind(((2, 2, 2),)),
    "uneven": Kind(
        ((1, 1), (1, 2), (2, 1), (1, 3), (1, 1, 2), (2, 1, 2), (1, 2, 2), (2, 2, 1)), num_short=(0, 1)
    ),
    "any letters": Kind(((3,), (6,), (2, 2), (3, 3)), any_letters=True),
}
_OUTLINE = re.compile(r"<Outline>\s*([0-9]+(?:\.[0-9]+)*)\s*:")


@dataclass(frozen=True)
class Answer:
    """A linear transcript and what it cost, in generated or injected tokens."""

    text: str
    total_tokens: int
    critical_path_tokens: int

    def longer(self, text: str, total_tokens: int, critical_path_tokens: int) -> Answer:
        """This answer and what follows it."""
        return Answer(
            self.text + text,
            self.total_tokens + total_tokens,
            self.critical_path_tokens + critical_path_tokens,
        )


@dataclass(frozen=True)
class Result:
    """One class of worksheets, decoded one way: shares of 1 and mean tokens."""

    name: str
    mode: str
    num_prompts: int
    right: float
    right_num_forks: float
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
        """Each fork's threads in isolation, then the joined context continued, as often as a sheet forks."""
        prompts = [tok.chat_prompt(s.prompt) for s in sheets]
        answers = [Answer("", 0, 0) for _ in sheets]
        alive = list(range(len(sheets)))
        for num_forks in range(MAX_FORKS + 1):
            pieces = self._generate(
                [prompts[i] + answers[i].text for i in alive], {self.eos, self.fork}, MAX_TOKENS
            )
            forked: list[int] = []
            for i, ids in zip(alive, pieces, strict=True):
                answers[i] = answers[i].longer(self._text(ids), len(ids), len(ids))
                if ids[-1] == self.fork and outline_numbers(answers[i].text):
                    forked.append(i)
            if not forked or num_forks == MAX_FORKS:
                break
            alive = forked
            self._run_threads(prompts, answers, forked)
        return answers

    def _run_threads(self, prompts: list[str], answers: list[Answer], forked: list[int]) -> None:
        """The threads of one fork of each of ``forked``, joined to its answer."""
        jobs = [(i, number) for i in forked for number in outline_numbers(answers[i].text)]
        starts = [prompts[i] + answers[i].text + f"\n<Thread>\n{n}:" for i, n in jobs]
        threads = self._generate(starts, {self.eos, self.thread_end}, MAX_THREAD_TOKENS)
        header = len(tok.encode(self.tokenizer, "<Thread>\n1:"))
        for i in forked:
            mine = [(n, ids) for (j, n), ids in zip(jobs, threads, strict=True) if j == i]
            lengths = [header + len(ids) for _, ids in mine]
            join = "\n" + "".join(map(self._joined, mine)) + "\n"
            answers[i] = answers[i].longer(join, 2 + sum(lengths), 2 + max(lengths))

    def _joined(self, thread: tuple[str, list[int]]) -> str:
        number, ids = thread
        close = "" if ids[-1] == self.thread_end else "\n</Thread>"
        return f"<Thread>\n{number}:{self._text(ids)}{close}"

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
        right_num_forks=sum(v.num_forks == s.num_forks for s, v in pairs) / count,
        right_num_threads=sum(v.num_threads == s.num_threads for s, v in pairs) / count,
        malformed=sum(not v.well_formed for v in verdicts) / count,
        critical_path_tokens=sum(a.critical_path_tokens for a in answers) / count,
        total_tokens=sum(a.total_tokens for a in answers) / count,
    )


def sheets_of(name: str, count: int, seed: int) -> list[Worksheet]:
    """``count`` held-out worksheets of class ``name``."""
    rng = random.Random(f"{seed} {name}")
    kind = CLASSES[name]
    return [
        make_chain(
            rng,
            levels=rng.choice(kind.levels),
            num_short=rng.randint(*kind.num_short),
            letters=rng.sample(LETTERS, len(LETTERS)) if kind.any_letters else LETTERS,
            held_out=True,
        )
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
                    f"{name:10} {mode:10} right {result.right:.3f} forks {result.right_num_forks:.3f} "
                    f"threads {result.right_num_threads:.3f} malformed {result.malformed:.3f} tokens "
                    f"{result.critical_path_tokens:.0f}/{result.total_tokens:.0f} "
                    f"({time.monotonic() - started:.0f} s)"
                )
                work.done()
            if args.json:
                args.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
