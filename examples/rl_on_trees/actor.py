"""The engine that samples: answers with their trees, judged, and what many of them come to on average."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM takes nearly all memory otherwise
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process, beside the model
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from transformers import LlamaForCausalLM
from vllm import SamplingParams
from vllm.outputs import CompletionOutput
from worksheets import critical_path, without_fork

from forkjoin import LLM, Row, Tree
from forkjoin.tree.segment import ROOT
from training import tokenizer
from training.task import Worksheet, check


@dataclass(frozen=True)
class Answer:
    """A sampled answer, judged. ``without_fork_steps``: tokens of the right answer that does not fork."""

    tree: Tree
    is_right: bool
    num_steps: int
    without_fork_steps: int

    @property
    def num_tokens(self) -> int:
        """All that was sampled, on the critical path or beside it."""
        return sum(sum(segment.sampled) for segment in self.tree.segments)

    @property
    def forks(self) -> bool:
        """Whether it has threads."""
        return any(segment.thread != ROOT for segment in self.tree.segments)


@dataclass(frozen=True)
class Measured:
    """Means over answers, and the standard errors of two of them."""

    num_answers: int
    right: float
    right_error: float
    forks: float
    steps: float
    steps_error: float
    tokens: float

    def __str__(self) -> str:
        return (
            f"{self.right:.1%} ± {self.right_error:.1%} right, {self.forks:.1%} fork, critical path "
            f"{self.steps:.1f} ± {self.steps_error:.1f} steps, {self.tokens:.1f} tokens"
        )


def summary(answers: Sequence[Answer]) -> Measured:
    """Means and standard errors of ``answers``, at least two."""
    right = [float(a.is_right) for a in answers]
    steps = [float(a.num_steps) for a in answers]
    root = len(answers) ** 0.5
    return Measured(
        num_answers=len(answers),
        right=statistics.mean(right),
        right_error=statistics.stdev(right) / root,
        forks=statistics.mean(a.forks for a in answers),
        steps=statistics.mean(steps),
        steps_error=statistics.stdev(steps) / root,
        tokens=statistics.mean(a.num_tokens for a in answers),
    )


class Actor:
    """The engine that samples, with the weights that it was given last."""

    def __init__(self) -> None:
        self.llm = LLM(max_model_len=4096, enforce_eager=True, dtype="float32")
        self.tokenizer = tokenizer.build()
        self.version = "embedded"
        self.llm.llm_engine.set_weight_version(self.version)

    def take_weights(self, model: LlamaForCausalLM, version: str) -> None:
        """Sample with the weights of ``model`` from now on; each segment then names ``version``."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": model.state_dict().items()})
        self.llm.llm_engine.set_weight_version(version)
        self.llm.reset_prefix_cache()  # the KV in it is of the old weights
        self.version = version

    def groups(self, sheets: Sequence[Worksheet], size: int, seed: int) -> list[list[Answer]]:
        """``size`` answers to each of ``sheets``, at temperature 1.

        Raises RuntimeError if a token was sampled by other weights than the last.
        """
        # a seed of its own for each answer: with one for all, vLLM draws the same noise for every prompt
        params = [
            SamplingParams(temperature=1.0, seed=seed + at * size, n=size, max_tokens=1500)
            for at in range(len(sheets))
        ]
        chats = [[{"role": "user", "content": sheet.prompt}] for sheet in sheets]
        outputs = self.llm.chat(chats, params, use_tqdm=False)
        return [
            [self._judged(sheet, answer) for answer in output.outputs]
            for sheet, output in zip(sheets, outputs, strict=True)
        ]

    def _judged(self, sheet: Worksheet, answer: CompletionOutput) -> Answer:
        tree = answer.tree
        versions = {segment.weight_version for segment in tree.segments if any(segment.sampled)}
        if versions != {self.version}:
            raise RuntimeError(f"expected tokens of the weights {self.version}, got {versions}")
        is_right = check(sheet, answer.text).right
        plain = len(tokenizer.encode(self.tokenizer, without_fork(sheet) + tokenizer.EOS))
        return Answer(tree, is_right, critical_path(tree), plain)

    def plain_row(self, sheet: Worksheet) -> Row:
        """The right answer to ``sheet`` that does not fork, as if it had been sampled."""
        prompt = tokenizer.encode(self.tokenizer, tokenizer.chat_prompt(sheet.prompt))
        ids = tokenizer.encode(self.tokenizer, without_fork(sheet) + tokenizer.EOS)
        return Row(ROOT, prompt, ids, [1] * len(ids), [0.0] * len(ids), is_exact=True)
