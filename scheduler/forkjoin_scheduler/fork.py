"""Whether and into what a request forks: facts in, a plan or a refusal out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from forkjoin_scheduler.dialect import Dialect, Limits, Outline, Policy, Tokenizer, fill


@dataclass(frozen=True)
class ThreadPlan:
    """One thread to start: its outline number and title, and the texts around it as token ids."""

    number: str
    title: str
    header_ids: tuple[int, ...]
    joined_header_ids: tuple[int, ...]


@dataclass(frozen=True)
class ForkPlan:
    """The threads of a fork, in outline order; ``num_duplicates`` outlines were dropped."""

    threads: tuple[ThreadPlan, ...]
    num_duplicates: int


@dataclass(frozen=True)
class Refusal:
    """No fork, for a named reason (a field of ``Policies``), and what to do instead."""

    reason: str
    policy: Policy


def read_outlines(outline: Outline, text: str) -> list[tuple[str, str]]:
    """(number, title) of each outline in ``text`` after the last opening tag, in order."""
    block = text.rpartition(outline.opens)[2]
    return [
        (match["number"], (match.groupdict().get("title") or "").strip())
        for match in re.finditer(outline.pattern, block)
    ]


def plan_fork(
    dialect: Dialect,
    limits: Limits,
    context: list[int],
    tokenizer: Tokenizer,
    *,
    num_forks: int = 0,
    depth: int = 0,
    max_model_len: int | None = None,
) -> ForkPlan | Refusal:
    """Decide what the trigger at the end of ``context`` (token ids) does.

    ``num_forks`` counts the forks that the request has made before, ``depth`` the threads around
    the one that forks (0: the request itself), ``max_model_len`` the tokens a context can hold.
    """
    policies = dialect.policies
    if depth >= dialect.max_depth:
        return Refusal("nested_fork", policies.nested_fork)
    if limits.max_forks is not None and num_forks >= limits.max_forks:
        return Refusal("too_many_forks", policies.too_many_forks)
    outlines = _announced(dialect, limits, context, tokenizer)
    titles = dict(reversed(outlines))
    numbers = list(dict.fromkeys(number for number, _ in outlines))
    if not numbers:
        return Refusal("no_outline", policies.no_outline)
    num_duplicates = len(outlines) - len(numbers)
    if num_duplicates and policies.duplicate_outline is not Policy.DROP:
        return Refusal("duplicate_outline", policies.duplicate_outline)
    if limits.max_threads_per_fork is not None and len(numbers) > limits.max_threads_per_fork:
        return Refusal("too_many_threads", policies.too_many_threads)
    threads = tuple(
        _plan_thread(dialect, number, titles[number], position == 0, tokenizer)
        for position, number in enumerate(numbers)
    )
    longest = max(len(t.header_ids) for t in threads)
    if max_model_len is not None and len(context) + longest >= max_model_len:
        return Refusal("no_room", policies.no_room)
    return ForkPlan(threads, num_duplicates)


def _plan_thread(
    dialect: Dialect, number: str, title: str, is_first: bool, tokenizer: Tokenizer
) -> ThreadPlan:
    header = tuple(tokenizer.encode(fill(dialect.thread.header, number)))
    joined = header if is_first else tuple(tokenizer.encode(fill(dialect.thread.joined_header, number)))
    return ThreadPlan(number, title, header, joined)


def _announced(
    dialect: Dialect, limits: Limits, context: list[int], tokenizer: Tokenizer
) -> list[tuple[str, str]]:
    """(number, title) of each thread: as the outlines say, or as many as the dialect's width."""
    if dialect.outline is not None:
        since = _since_opening(dialect.outline.opens, dialect.trigger, context, tokenizer)
        return read_outlines(dialect.outline, tokenizer.decode(since))
    assert dialect.width is not None
    width = min(dialect.width, limits.max_threads_per_fork or dialect.width)
    return [(str(n), "") for n in range(1, width + 1)]


def _since_opening(opens: str, trigger: str, context: list[int], tokenizer: Tokenizer) -> list[int]:
    """What stands behind the last opening tag; nothing where another trigger lies in between."""
    opening, triggering = tokenizer.token_id(opens), tokenizer.token_id(trigger)
    for index in range(len(context) - 2, -1, -1):
        if context[index] == triggering:
            break
        if context[index] == opening:
            return context[index:]
    return []
