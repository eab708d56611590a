"""Training samples: ordinary causal sequences, exactly what the server will show the model.

Two forms of a forked transcript: *linear*, as it stands after the join (and as the same weights
decode it sequentially), and *isolated*, one thread behind the opening alone, as it runs after
the fork. No attention mask is needed for either.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training import tokenizer as tok
from training.prompts import make_chain
from training.task import LETTERS, Worksheet, transcript

#: The share of worksheets whose letters stand in the order of the alphabet; in the others, in any.
#: With the first alone, a thread would take its letter from its number, and not look up its outline.
ALPHABETICAL_SHARE = 0.4
#: The share of forked worksheets that are trained as one linear sequence.
LINEAR_SHARE = 0.25
#: Long problems beside each other -> weight, one more than are measured.
WIDTHS: dict[tuple[int, ...], int] = {
    (2,): 16,
    (3,): 13,
    (4,): 12,
    (5,): 12,
    (6,): 14,
    (7,): 12,
    (8,): 14,
    (9,): 7,
}
#: Long problems of each level -> weight: the later ones wait for the ones before.
CHAINS: dict[tuple[int, ...], int] = {
    (1, 1): 4, (1, 2): 4, (2, 1): 4, (2, 2): 8, (1, 3): 8, (3, 1): 4, (2, 3): 12, (3, 2): 6, (3, 3): 20,
    (4, 4): 16, (4, 2): 4, (2, 4): 8, (1, 1, 1): 2, (1, 1, 2): 2, (1, 2, 2): 3, (2, 1, 2): 3, (2, 2, 1): 2,
    (2, 2, 2): 8, (1, 2, 3): 2, (2, 2, 3): 4, (3, 2, 2): 4, (3, 3, 2): 3, (2, 3, 3): 3, (3, 3, 3): 2,
}  # fmt: skip
#: The weight of the opening's tokens, where the decision to fork is made.
OPENING_WEIGHT = 2.0
#: The weight of a thread's first line, where it finds its own outline among the others.
FIRST_LINE_WEIGHT = 5.0


@dataclass(frozen=True)
class Sample:
    """Token ids and, for each, the weight of its loss as a target (0: not trained)."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """Padded samples: ids, targets [batch, length] and the weights of the targets."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor


class Sampler:
    """Endless batches of about ``tokens_per_batch`` tokens, deterministic in its ``rng``."""

    def __init__(self, rng: random.Random, tokens_per_batch: int, pool_size: int = 384) -> None:
        self.rng, self.tokens_per_batch, self.pool_size = rng, tokens_per_batch, pool_size
        self.tokenizer: Any = tok.build()

    def worksheet(self) -> Worksheet:
        """A worksheet of the training mix: 1 to 9 problems, some of which wait for others."""
        kind = self.rng.random()
        if kind < 0.06:
            return self._worksheet((0,), num_short=self.rng.randint(1, 9))
        if kind < 0.12:
            return self._worksheet((1,), num_short=self.rng.randint(0, 3))
        if kind < 0.55:
            levels = self.rng.choices(list(WIDTHS), weights=list(WIDTHS.values()))[0]
        else:
            levels = self.rng.choices(list(CHAINS), weights=list(CHAINS.values()))[0]
        short = self.rng.randint(1, 3) if self.rng.random() < 0.3 else 0
        return self._worksheet(levels, num_short=min(short, len(LETTERS) - sum(levels)))

    def _worksheet(self, levels: tuple[int, ...], num_short: int) -> Worksheet:
        in_order = self.rng.random() < ALPHABETICAL_SHARE
        letters = LETTERS if in_order else self.rng.sample(LETTERS, len(LETTERS))
        return make_chain(self.rng, levels=levels, num_short=num_short, letters=letters)

    def sample(self) -> Sample:
        """One sample: linear or, for most of the forked worksheets, one isolated thread."""
        sheet = self.worksheet()
        parts = transcript(sheet)
        pieces = [(tok.chat_prompt(sheet.prompt), 0.0)]
        last = len(parts.forks) - 1
        isolated = max(self.rng.randint(0, last), self.rng.randint(0, last)) if parts.forks else None
        if self.rng.random() < LINEAR_SHARE:
            isolated = None
        for fork in parts.forks[:isolated]:
            pieces += [(fork.opening, OPENING_WEIGHT), (fork.joined[len(fork.opening) :], 1.0)]
        if isolated is None:
            pieces.append((parts.closing + tok.EOS, 1.0 if parts.forks else OPENING_WEIGHT))
        else:
            fork = parts.forks[isolated]
            header, text = fork.thread(self.rng.randrange(len(fork.threads)))
            first_line, rest = text.split("\n", 1)
            pieces += [
                (fork.opening, OPENING_WEIGHT),
                (header, 0.0),  # the engine writes it, and its number is chance
                (f"{first_line}\n", FIRST_LINE_WEIGHT),
                (rest, 1.0),
            ]
        return self._tokenised(pieces)

    def _tokenised(self, pieces: list[tuple[str, float]]) -> Sample:
        ids: list[int] = []
        weights: list[float] = []
        for text, weight in pieces:
            piece = tok.encode(self.tokenizer, text)
            ids += piece
            weights += [weight] * len(piece)
        return Sample(ids, weights)

    def batches(self) -> Iterator[Batch]:
        """Batches of samples of similar length, in random order."""
        while True:
            pool = sorted((self.sample() for _ in range(self.pool_size)), key=lambda s: len(s.ids))
            groups: list[list[Sample]] = []
            while pool:
                count = max(1, self.tokens_per_batch // len(pool[-1].ids))
                groups.append(pool[-count:])
                del pool[-count:]
            self.rng.shuffle(groups)
            yield from map(collate, groups)


def collate(samples: list[Sample]) -> Batch:
    """Pad ``samples`` to the longest; the padding has weight 0."""
    length = max(len(s.ids) for s in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    weights = torch.zeros(len(samples), length)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        weights[row, : len(sample.ids)] = torch.tensor(sample.weights)
    return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:])
