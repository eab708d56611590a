"""A dialect that any model can be verified with, and how its answers are taken apart.

It forks after the prompt into three threads of a fixed length, so that what the model writes does not matter.
The join's text repeats the header of the second thread. A model that copies goes on from what that thread
wrote, so what follows depends on the thread's KV and positions more than after another text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, THREAD_TOKENS, AFTER_TOKENS = 3, 21, 24
HEADER, JOIN_TEXT = "\n{n}:", "\n2:"
PROMPT = "a=482*731, b=7*8, c=9047*36 and d=64*28, e=91*73: all of them, one after the other. "


def ending_in_a_block(prompt: list[int], block_size: int) -> list[int]:
    """``prompt``, one token less if it would fill its last block: threads are to share one in part."""
    return prompt if len(prompt) % block_size else prompt[:-1]


def dialect_file(join: str) -> str:
    """The dialect, with this kind of join."""
    return f"""name: verify
source: forkjoin verify
fork_at: prompt
tags_are: text
width: {WIDTH}
thread:
  header: {json.dumps(HEADER)}
join:
  kind: {join}
  text: {json.dumps(JOIN_TEXT)}
limits:
  max_forks: 1
  max_threads_per_fork: {WIDTH}
policies:
  thread_eos: close_thread
  thread_length: close_thread
"""


@dataclass(frozen=True)
class Transcript:
    """An answer: what each thread has, its header first, and what stands after the join, its text first."""

    threads: list[list[int]]
    after: list[int]


def take_apart(
    token_ids: Sequence[int], headers: Sequence[Sequence[int]], join_ids: Sequence[int]
) -> Transcript:
    """The parts of an answer. Raises ValueError if these are not three threads and what follows them."""
    at, threads = 0, []
    for number, header in enumerate(headers, 1):
        thread = list(token_ids[at : at + len(header) + THREAD_TOKENS])
        if thread[: len(header)] != list(header) or len(thread) != len(header) + THREAD_TOKENS:
            raise ValueError(
                f"expected thread {number}, of {THREAD_TOKENS} tokens after its header, at {at}, got {thread}"
            )
        threads.append(thread)
        at += len(thread)
    after = list(token_ids[at:])
    if after[: len(join_ids)] != list(join_ids) or len(after) == len(join_ids):
        raise ValueError(f"expected the join's text and what follows it at {at}, got {after}")
    return Transcript(threads, after)
