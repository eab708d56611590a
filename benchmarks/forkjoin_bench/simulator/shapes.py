"""Workloads of the published shapes (the papers are named in ``configs/dialects``), in tokens.

Each is a function of a random number generator.
"""

from __future__ import annotations

import random

from forkjoin_bench.simulator.workload import Body, Fork, Request, Shape, mixed


def threadweaver(rng: random.Random) -> Request:
    """About 4 forks of 2.5 threads of 540-970 tokens, 11k tokens in all."""
    return Request(rng.randint(200, 600), _forks(rng, 4, (2, 3), (540, 970), (400, 900)))


def multiverse(rng: random.Random) -> Request:
    """2.6-3.9 forks; threads a fork p50 2, p90 4, at most 18; 13% of them nested."""
    widths = (2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 4, 18) if rng.random() < 0.1 else (2, 2, 2, 2, 3, 3, 4)
    body: list[int | Fork] = [rng.randint(200, 500)]
    for _ in range(rng.choice((2, 3, 3, 4))):
        threads = [_thread(rng, (200, 900)) for _ in range(rng.choice(widths))]
        if rng.random() < 0.13:
            inner = Fork(tuple(_thread(rng, (100, 400)) for _ in range(2)))
            threads[0] = (rng.randint(50, 150), inner, rng.randint(50, 150))
        body += [Fork(tuple(threads)), rng.randint(200, 500)]
    return Request(rng.randint(200, 600), tuple(body))


def npr_wide(rng: random.Random) -> Request:
    """Two forks of five steps, as wide as NPR goes."""
    return Request(rng.randint(400, 900), _forks(rng, 2, (5,), (300, 900), (200, 500)))


def fork_heavy(rng: random.Random) -> Request:
    """Four forks into eight threads of 4-16 tokens: forks and joins are most of the work."""
    return Request(rng.randint(200, 600), _forks(rng, 4, (8,), (4, 16), (4, 12)))


def tight(rng: random.Random) -> Request:
    """The load of the measured tables: one fork into 2-6 threads of 16-96 tokens after 400 of prompt."""
    return Request(400, _forks(rng, 1, (2, 3, 4, 5, 6), (16, 96), (4, 24)))


def unequal(rng: random.Random) -> Request:
    """One fork into threads of 32, 64 … 256 tokens, in this order: most end long before the last."""
    return Request(200, (10, Fork(tuple((32 * n,) for n in range(1, 9))), rng.randint(8, 24)))


def medverse(rng: random.Random) -> Request:
    """A plan of three to five stages of one to three steps, which see the stages before. Lengths are ours."""
    body: list[int | Fork] = [rng.randint(150, 300)]
    for _ in range(rng.randint(3, 5)):
        body += [Fork(tuple(_thread(rng, (60, 200)) for _ in range(rng.randint(1, 3)))), 0]
    return Request(rng.randint(200, 600), (*body[:-1], rng.randint(100, 300)))


def pacore(rng: random.Random) -> Request:
    """A round of four answers, and one that has them in its prompt. Lengths are ours, and short."""
    answers = Fork(tuple(_thread(rng, (400, 1500)) for _ in range(4)))
    return Request(rng.randint(200, 600), (0, answers, rng.randint(400, 1500)))


def plain(rng: random.Random) -> Request:
    """Ordinary traffic, asked for without fork/join."""
    return Request(rng.randint(100, 1500), (rng.randint(50, 800),), may_fork=False)


def sequential(rng: random.Random) -> Request:
    """A request that could fork and does not."""
    return Request(rng.randint(100, 600), (rng.randint(100, 3000),))


SHAPES: dict[str, Shape] = {
    "threadweaver": threadweaver,
    "multiverse": multiverse,
    "npr-wide": npr_wide,
    "fork-heavy": fork_heavy,
    "tight": tight,
    "unequal": unequal,
    "medverse": medverse,
    "pacore": pacore,
    "plain": plain,
    "mixed": mixed((2, threadweaver), (1, tight), (2, plain)),
    "mixed-small": mixed((1, tight), (1, plain)),
    "mixed-wide": mixed((1, npr_wide), (3, plain)),
    "half-forking": mixed((1, multiverse), (1, sequential)),
}


def _thread(rng: random.Random, lengths: tuple[int, int]) -> Body:
    return (rng.randint(*lengths),)


def _forks(
    rng: random.Random, num: int, widths: tuple[int, ...], lengths: tuple[int, int], between: tuple[int, int]
) -> Body:
    body: list[int | Fork] = [rng.randint(*between)]
    for _ in range(num):
        body += [
            Fork(tuple(_thread(rng, lengths) for _ in range(rng.choice(widths)))),
            rng.randint(*between),
        ]
    return tuple(body)
