"""What is asked of the simulated server: requests with what the model will write, and when they come."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fork:
    """Threads that run side by side, by what each writes."""

    threads: tuple[Body, ...]


#: What a branch writes: tokens (the last of them forks, or ends it), forks, tokens again. 0 tokens: it forks
#: before it writes. That is its next stage, whose threads see those of the last; in a dialect of rounds,
#: its next round. A request may begin with 0: it forks after its prompt.
Body = tuple[int | Fork, ...]


@dataclass(frozen=True)
class Request:
    """``prompt``: its tokens, of which the first ``shared`` are those of its ``session``."""

    prompt: int
    body: Body
    arrival: float = 0.0
    may_fork: bool = True
    session: int = 0
    shared: int = 0

    def __post_init__(self) -> None:
        _check(self.body)


@dataclass(frozen=True)
class Spoken:
    """Tokens that a dialect injects, and how it joins.

    ``header``: before a thread; ``joined_header``: before the second and later ones in the joined
    context; ``join``: behind the last thread, or ``between_stages`` if another stage follows. ``close``:
    tokens of an ended thread whose KV a stitched join still has to compute. ``asks_again``: joins make a new
    prompt, with ``join`` tokens around the old one and ``joined_header`` before what each thread returns.
    """

    header: int = 5
    joined_header: int = 4
    join: int = 1
    close: int = 1
    is_stitched: bool = False
    between_stages: int = 1
    asks_again: bool = False


THREADWEAVER = Spoken()
MULTIVERSE = Spoken(is_stitched=True, join=2)
#: By its words, of which a token has about four characters.
PACORE = Spoken(header=0, joined_header=4, join=70, asks_again=True)


def _check(body: Body) -> None:
    """Raises ValueError unless tokens and forks take turns, tokens first and last."""
    expected = [Fork if i % 2 else int for i in range(len(body))]
    if len(body) % 2 == 0 or [type(part) for part in body] != expected:
        raise ValueError(f"body: expected tokens, fork, tokens, ..., tokens, got {body!r}")
    if isinstance(body[-1], int) and body[-1] < 1:
        raise ValueError(f"body: expected at least one token before an end, got {body[-1]}")
    for part in body:
        if isinstance(part, int) and part < 0:
            raise ValueError(f"body: expected no tokens or more before a fork, got {part}")
        for thread in () if isinstance(part, int) else part.threads:
            _check(thread)
            if thread[0] == 0:
                raise ValueError("body: expected a thread to write before it forks, got one of 0 tokens")


def num_generated(body: Body) -> int:
    """Tokens that the model writes in ``body``, threads included."""
    return sum(p if isinstance(p, int) else sum(map(num_generated, p.threads)) for p in body)


def num_critical(body: Body) -> int:
    """Tokens on the longest path through ``body``."""
    return sum(p if isinstance(p, int) else max(map(num_critical, p.threads)) for p in body)


def num_forks(body: Body) -> int:
    """Forks in ``body``, nested ones included."""
    return sum(1 + sum(map(num_forks, p.threads)) for p in body if isinstance(p, Fork))


def peak_tokens(request: Request, spoken: Spoken = THREADWEAVER) -> int:
    """KV that ``request`` holds at its widest, in tokens, its shared prefix counted once."""
    return request.prompt + _peak(request.body, spoken)[0]


def stages_from(body: Body, at: int) -> list[Fork]:
    """The fork at ``at`` in ``body``, and those of later stages, which follow it with no token between."""
    fork = body[at]
    assert isinstance(fork, Fork)
    return [fork, *(stages_from(body, at + 2) if body[at + 1] == 0 else [])]


def widths_of_rounds(body: Body) -> tuple[int, ...]:
    """How many threads each fork of ``body`` has."""
    return tuple(len(part.threads) for part in body if isinstance(part, Fork))


def _peak(body: Body, spoken: Spoken) -> tuple[int, int]:
    """Tokens after the start of ``body``: at its widest, and at its end."""
    peak = length = 0
    for part in body:
        if isinstance(part, int):
            length += part
        else:
            inner = [_peak(thread, spoken) for thread in part.threads]
            peak = max(peak, length + sum(spoken.header + p for p, _ in inner))
            length = 0 if spoken.asks_again else length
            length += sum(max(spoken.header, spoken.joined_header) + end for _, end in inner) + spoken.join
        peak = max(peak, length)
    return peak, length


Shape = Callable[[random.Random], Request]


def draw(shape: Shape, num: int, seed: int) -> list[Request]:
    """``num`` requests of ``shape``, all at once."""
    rng = random.Random(seed)
    return [shape(rng) for _ in range(num)]


def at_rate(requests: list[Request], per_second: float, seed: int) -> list[Request]:
    """Let ``requests`` come as a Poisson process."""
    rng, now = random.Random(f"arrivals{seed}"), 0.0
    arriving = []
    for request in requests:
        now += rng.expovariate(per_second)
        arriving.append(replace(request, arrival=now))
    return arriving


def mixed(*parts: tuple[float, Shape]) -> Shape:
    """A shape that is each of ``parts`` with its weight."""
    weights, shapes = zip(*parts, strict=True)

    def shape(rng: random.Random) -> Request:
        chosen: Shape = rng.choices(shapes, weights)[0]
        return chosen(rng)

    return shape


def in_sessions(requests: list[Request], num_sessions: int, shared: int, seed: int) -> Iterator[Request]:
    """Give each request the prefix of one of ``num_sessions`` sessions, ``shared`` tokens before its own."""
    rng = random.Random(f"sessions{seed}")
    for request in requests:
        session = rng.randrange(num_sessions) + 1
        yield replace(request, prompt=request.prompt + shared, session=session, shared=shared)
