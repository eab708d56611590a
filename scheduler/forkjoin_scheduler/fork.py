"""Whether and into what a request forks: facts in, a plan or a refusal out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from forkjoin_scheduler.dialect import Dialect, Limits, Policy, Tokenizer


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


def read_outlines(dialect: Dialect, text: str) -> list[tuple[str, str]]:
    """(number, title) of each outline in ``text`` after the last opening tag, in order."""
    block = text.rpartition(dialect.outline.opens)[2]
    return [
        (match["number"], (match.groupdict().get("title") or "").strip())
        for match in re.finditer(dialect.outline.pattern, block)
    ]


def plan_fork(
    dialect: Dialect, limits: Limits, num_forks: int, context: list[int], tokenizer: Tokenizer
) -> ForkPlan | Refusal:
    """Decide what the trigger at the end of ``context`` (token ids) does.

    ``num_forks`` counts the forks that the request has made before.
    """
    policies = dialect.policies
    if limits.max_forks is not None and num_forks >= limits.max_forks:
        return Refusal("too_many_forks", policies.too_many_forks)
    outlines = read_outlines(dialect, tokenizer.decode(_since_opening(dialect, context, tokenizer)))
    unique = dict(reversed(outlines))
    ordered = list(dict.fromkeys(number for number, _ in outlines))
    if not ordered:
        return Refusal("no_outline", policies.no_outline)
    if limits.max_threads_per_fork is not None and len(ordered) > limits.max_threads_per_fork:
        return Refusal("too_many_threads", policies.too_many_threads)
    threads = []
    for position, number in enumerate(ordered):
        header = tuple(tokenizer.encode(dialect.thread.header.format(n=number)))
        joined = dialect.thread.joined_header.format(n=number)
        joined_ids = tuple(tokenizer.encode(joined)) if position else header
        threads.append(ThreadPlan(number, unique[number], header, joined_ids))
    return ForkPlan(tuple(threads), len(outlines) - len(ordered))


def _since_opening(dialect: Dialect, context: list[int], tokenizer: Tokenizer) -> list[int]:
    opens = tokenizer.token_id(dialect.outline.opens)
    for index in range(len(context) - 1, -1, -1):
        if context[index] == opens:
            return context[index:]
    return []
