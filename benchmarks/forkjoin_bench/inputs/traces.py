"""Traces: what models write, of the published shapes, made small enough for two cores.

A trace is made of families. A family is a prompt and a body: text, and forks into threads whose
bodies are bodies again. The tags are ThreadWeaver's. The numbers are those of the papers that the
heads of ``configs/dialects`` name; each shape says what was scaled. A trace depends on its name and its
seed, its words on the tokenizer's pieces, and nothing on anything else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from forkjoin_bench.inputs.words import Words

TITLE_TOKENS = 2


@dataclass(frozen=True)
class Thread:
    """One thread of a fork: its number in the outline, its title, and what it writes up to its end tag."""

    number: str
    title: str
    body: Body


@dataclass(frozen=True)
class Fork:
    """Threads that run side by side."""

    threads: tuple[Thread, ...]

    @property
    def outline(self) -> str:
        """What the branch writes to fork, the trigger last."""
        lines = "".join(f"<Outline>{t.number}:{t.title}</Outline>\n" for t in self.threads)
        return f"<Parallel>\n<Outlines>\n{lines}</Outlines>"


Body = tuple[str | Fork, ...]


@dataclass(frozen=True)
class Family:
    """One request: its prompt, and what the model answers.

    ``sample``: its number among the samples of the prompt, None if it is the only one.
    """

    name: str
    prompt: str
    body: Body
    sample: int | None = None


class Author:
    """Writes families of one trace: ``rng`` decides on their shape, which is the same for all tokenizers."""

    def __init__(self, words: Words, seed: str) -> None:
        self.rng = random.Random(seed)
        self._seed = seed
        self._text_rng = random.Random(f"{seed}/text")
        self._words = words

    def reword(self, sample: int) -> None:
        """Write the same shape as before from here on, in words that only this sample has."""
        self._text_rng = random.Random(f"{self._seed}/text/{sample}")

    def text(self, num_tokens: int) -> str:
        return self._words.text(self._text_rng, num_tokens)

    def between(self, low: int, high: int) -> str:
        """Text of ``low`` to ``high`` tokens."""
        return self.text(self.rng.randint(low, high))

    def fork(self, lengths: list[int], *, within: str = "") -> Fork:
        """A fork into plain threads of ``lengths`` tokens; ``within``: the number of the thread it is in."""
        return self.fork_into([(self.text(n),) for n in lengths], within=within)

    def fork_into(self, bodies: list[Body], *, within: str = "") -> Fork:
        threads = [Thread(f"{within}{n}", self.text(TITLE_TOKENS), body) for n, body in enumerate(bodies, 1)]
        return Fork(tuple(threads))

    def lengths(self, width: int, low: int, high: int) -> list[int]:
        return [self.rng.randint(low, high) for _ in range(width)]


def _threadweaver(author: Author) -> Body:
    """About 4 forks of 2.5 threads of 540-970 tokens, 11k in all: tokens a twelfth of it."""
    body: list[str | Fork] = [author.between(30, 50)]
    for _ in range(4):
        width = author.rng.choice((2, 3))
        body += [author.fork(author.lengths(width, 45, 80)), author.between(10, 30)]
    return tuple(body)


def _multiverse(author: Author) -> Body:
    """2.6-3.9 forks, threads p50 2, p90 4, 13% of forks nested: two or three forks, one in seven nested."""
    body: list[str | Fork] = [author.between(20, 40)]
    for _ in range(author.rng.choice((2, 3, 3))):
        width = author.rng.choice((2, 2, 2, 2, 2, 3, 3, 4, 4, 6))
        bodies: list[Body] = [(author.text(n),) for n in author.lengths(width, 32, 96)]
        if author.rng.random() < 0.13:
            inner = author.fork(author.lengths(2, 16, 48), within="1.")
            bodies[0] = (author.between(10, 20), inner, author.between(10, 20))
        body += [author.fork_into(bodies), author.between(20, 40)]
    return tuple(body)


def _npr_wide(author: Author) -> Body:
    """NPR at its widest: five plans a fork, two forks."""
    body: list[str | Fork] = [author.between(20, 40)]
    for _ in range(2):
        body += [author.fork(author.lengths(5, 64, 128)), author.between(20, 40)]
    return tuple(body)


def _fork_heavy(author: Author) -> Body:
    """Four forks into eight threads of 4-16 tokens: the fork and the join are most of the work."""
    body: list[str | Fork] = [author.between(10, 20)]
    for _ in range(4):
        body += [author.fork(author.lengths(8, 4, 16)), author.between(4, 8)]
    return tuple(body)


def _nested(author: Author) -> Body:
    """Forks within forks, three deep: Multiverse nests up to 4."""

    def threads(within: str, depth: int) -> Fork:
        bodies: list[Body] = []
        for n in (1, 2):
            own = f"{within}{n}."
            inner = (threads(own, depth - 1), author.between(8, 16)) if depth > 1 else ()
            bodies.append((author.between(24, 48), *inner))
        return author.fork_into(bodies, within=within)

    return (author.between(20, 40), threads("", 3), author.between(20, 40))


def _eight_by_64(author: Author) -> Body:
    """The shape of the measured table: 8 threads of 64 tokens, 32 more after the join."""
    return (author.text(10), author.fork([64] * 8), author.text(32))


UNEQUAL = (32, 64, 96, 128, 160, 192, 224, 256)


def _unequal(order: str) -> Callable[[Author], Body]:
    """8 threads of 32 to 256 tokens; ``order``: where in the outline the long ones stand."""

    def body(author: Author) -> Body:
        lengths = sorted(UNEQUAL, reverse=order == "descending")
        if order == "mixed":
            random.Random(1).shuffle(lengths)
        return (author.text(10), author.fork(lengths), author.text(16))

    return body


def _families(author: Author) -> Body:
    """The load of the measured tables: one fork into 2-6 threads of 16-96 tokens."""
    width = author.rng.randint(2, 6)
    return (author.between(8, 16), author.fork(author.lengths(width, 16, 96)), author.text(24))


def _plain(author: Author) -> Body:
    """Ordinary traffic: nothing forks."""
    return (author.between(64, 128),)


def _tiny(author: Author) -> Body:
    """For the smoke test: two threads, one of them with a fork of its own."""
    inner = author.fork([6, 9], within="2.")
    return (
        author.text(4),
        author.fork_into([(author.text(12),), (author.text(5), inner, author.text(3))]),
        author.text(8),
    )


#: Name of a trace: the tokens of its prompts (least, most), and what its families write.
SHAPES: dict[str, tuple[tuple[int, int], Callable[[Author], Body]]] = {
    "threadweaver": ((200, 300), _threadweaver),
    "multiverse": ((200, 300), _multiverse),
    "npr-wide": ((300, 400), _npr_wide),
    "fork-heavy": ((200, 300), _fork_heavy),
    "nested": ((200, 300), _nested),
    "8x64": ((590, 590), _eight_by_64),
    "unequal": ((200, 200), _unequal("ascending")),
    "unequal-mixed": ((200, 200), _unequal("mixed")),
    "unequal-descending": ((200, 200), _unequal("descending")),
    "families": ((400, 400), _families),
    "plain": ((128, 400), _plain),
    "tiny": ((40, 40), _tiny),
}


def make_trace(name: str, num_families: int, words: Words, seed: int = 1) -> list[Family]:
    """The first ``num_families`` families of the trace called ``name``; each has a prompt of its own."""
    return [_family(name, f"{name}-{i}", Author(words, f"{name}/{seed}/{i}")) for i in range(num_families)]


def make_samples(name: str, num_samples: int, words: Words, seed: int = 1) -> list[Family]:
    """``num_samples`` answers to the first prompt of the trace: one shape, and words of its own in each."""
    first = f"{name}/{seed}/0"
    return [_family(name, f"{name}-0/{i}", Author(words, first), sample=i) for i in range(num_samples)]


def _family(trace: str, name: str, author: Author, sample: int | None = None) -> Family:
    prompt_tokens, write = SHAPES[trace]
    prompt = author.between(*prompt_tokens)
    if sample is not None:
        author.reword(sample)
    return Family(name, prompt, write(author), sample)


def forks_in(body: Body) -> Iterator[Fork]:
    """Each fork of ``body``, those within threads included, outer ones first."""
    for part in body:
        if isinstance(part, Fork):
            yield part
            for thread in part.threads:
                yield from forks_in(thread.body)
