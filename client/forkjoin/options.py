"""What a request may ask of fork/join: the field ``forkjoin``. The server checks it."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from forkjoin.tree.tree import Tree


class Branch(TypedDict, total=False):
    """A thread of the request's own, which goes on from ``text``."""

    title: str
    text: str
    response_format: dict[str, Any]


class ForkJoin(TypedDict, total=False):
    """The field ``forkjoin`` of a request; docs/http-api.md says what each key means."""

    max_threads_per_fork: int
    max_forks: int
    max_tokens_per_thread: int
    max_total_tokens: int
    max_threads_running: int
    enabled: bool
    include_threads: bool
    return_tree: bool
    stream_segments: bool
    structured: Literal["answer"]
    best_of: int
    vote: str
    confidence: float
    prune: Literal["confidence", "agreement", "memory", "own"]
    wait_for_all: bool
    branches: list[Branch]
    closing: str
    rounds: list[int]
    keep: float
    continues: str
    continues_tree: Tree | dict[str, Any]
    group_id: str
