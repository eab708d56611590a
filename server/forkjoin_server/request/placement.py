"""Which of several engines answers a request: one that has the KV it shares with others.

With data parallelism vLLM sends each request to the engine with the least load. Two kinds belong
elsewhere: requests of one group (``forkjoin.group_id``), and those that go on from a kept answer. Several API
servers must name the same engine for these without asking each other. So a group's engine follows from its
id, and a kept answer's from the server's key in its id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from forkjoin_scheduler.publish.feed import key_in, new_key
from forkjoin_scheduler.request.options import RequestOptions


class Placement(NamedTuple):
    """The key of a request's answer, and the index of the engine that makes it; None: vLLM chooses."""

    key: str
    engine: int | None = None


def place(options: RequestOptions, num_engines: int, make_key: Callable[[], str] = new_key) -> Placement:
    """Where a request with ``options`` runs, and under which key.

    A group goes before the answer that a request goes on from. The key of an answer that is kept names the
    engine that has it: where that engine is given, keys are made until one does (``num_engines`` on average).
    """
    if num_engines == 1:
        return Placement(make_key())
    engine = None
    if options.group_id is not None:
        engine = engine_of(options.group_id, num_engines)
    elif options.continues is not None:
        engine = engine_of(key_in(options.continues) or options.continues, num_engines)
    key = make_key()
    if options.keep is not None:
        if engine is None:
            engine = engine_of(key, num_engines)
        while engine_of(key, num_engines) != engine:
            key = make_key()
    return Placement(key, engine)


def engine_of(name: str, num_engines: int) -> int:
    """The engine that ``name`` stands for: the same in each process, and each as often as another."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) % num_engines
