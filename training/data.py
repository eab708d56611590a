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
from training.task import Worksheet, make_worksheet, transcript

#: The share of forked worksheets that are trained as one linear sequence.
LINEAR_SHARE = 0.25
#: The weight of the opening's tokens, where the decision to fork is made.
OPENING_WEIGHT = 2.0


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
        """A worksheet of the training mix: 1 to 7 problems."""
        kind = self.rng.random()
        if kind < 0.12:
            return make_worksheet(self.rng, num_long=0, num_short=self.rng.randint(1, 6))
        if kind < 0.24:
            return make_worksheet(self.rng, num_long=1, num_short=self.rng.randint(0, 3))
        num_long = self.rng.choices(range(2, 8), weights=(20, 18, 16, 16, 22, 8))[0]
        short = self.rng.randint(1, 3) if self.rng.random() < 0.3 else 0
        return make_worksheet(self.rng, num_long=num_long, num_short=min(short, 7 - num_long))

    def sample(self) -> Sample:
        """One sample: linear or, for most of the forked worksheets, one isolated thread."""
        sheet = self.worksheet()
        parts = transcript(sheet)
        pieces = [(tok.chat_prompt(sheet.prompt), 0.0), (parts.opening, OPENING_WEIGHT)]
        if not parts.threads or self.rng.random() < LINEAR_SHARE:
            tail = parts.linear[len(parts.opening) :]
            pieces.append((tail + tok.EOS, 1.0))
        else:
            number = self.rng.randrange(len(parts.threads)) + 1
            pieces += [(parts.header(number), 1.0), (parts.threads[number - 1], 1.0)]
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
