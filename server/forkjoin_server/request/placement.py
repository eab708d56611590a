"""Which of several engines answers a request: one that has the KV it shares with others.

With data parallelism vLLM sends each request to the engine with the least load. Two kinds belong
elsewhere: requests of one group (``forkjoin.group_id``), and those that go on from a kept answer. Several API
servers must name the same engine for these without asking each other. So a group's engine follows from its
id, and a kept answer's from the server's key in its id, which is marked: other answers are anywhere.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from forkjoin_scheduler.publish.feed import is_placed, key_in, new_key, new_placed_key
from forkjoin_scheduler.request.options import RequestOptions


class Placement(NamedTuple):
    """The key of a request's answer, and the index of the engine that makes it; None: vLLM chooses."""

    key: str
    engine: int | None = None


def place(options: RequestOptions, num_engines: int) -> Placement:
    """Where a request with ``options`` runs, and under which key.

    A group goes before the answer that a request goes on from. The key of an answer that is kept names the
    engine that has it: where that engine is given, keys are made until one does (``num_engines`` on average).
    """
    if num_engines == 1:
        return Placement(new_key())
    engine = _engine_of_shared(options, num_engines)
    if options.keep is None:
        return Placement(new_key(), engine)
    key = new_placed_key()
    while engine is not None and engine_of(key, num_engines) != engine:
        key = new_placed_key()
    return Placement(key, engine_of(key, num_engines))


def _engine_of_shared(options: RequestOptions, num_engines: int) -> int | None:
    """The engine that has what the request shares with others; None: it shares nothing."""
    if options.group_id is not None:
        return engine_of(options.group_id, num_engines)
    key = None if options.continues is None else key_in(options.continues)
    return engine_of(key, num_engines) if key is not None and is_placed(key) else None


def engine_of(name: str, num_engines: int) -> int:
    """The engine that ``name`` stands for: the same in each process, and each as often as another."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) % num_engines
