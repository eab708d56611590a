"""What a branch's context becomes when its threads have ended."""

from __future__ import annotations

from dataclasses import dataclass

from forkjoin_scheduler.dialect import Dialect, Policy, Tokenizer
from forkjoin_scheduler.family import Branch, ThreadEnd


@dataclass(frozen=True)
class JoinPlan:
    """How a branch goes on.

    ``token_ids`` are appended to its context; ``closing_ids`` are those behind the last thread.
    ``end``: if set, the branch ends behind the block, for this reason of a thread.
    """

    token_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]
    end: ThreadEnd | None


def body(dialect: Dialect, thread: Branch, tokenizer: Tokenizer) -> list[int]:
    """The text of ``thread`` as it stands in the joined context, its header not included."""
    if thread.end is ThreadEnd.STOP:
        return list(thread.token_ids)
    kept = thread.token_ids[:-1] if thread.end is ThreadEnd.EOS else list(thread.token_ids)
    return kept + tokenizer.encode(dialect.thread.close)


def end_policy(dialect: Dialect, end: ThreadEnd | None) -> Policy | None:
    """The policy for a thread that ended without its end tag, None for any other end."""
    if end is ThreadEnd.EOS:
        return dialect.policies.thread_eos
    return dialect.policies.thread_length if end is ThreadEnd.LENGTH else None


def close_block_ids(dialect: Dialect, tokenizer: Tokenizer) -> list[int]:
    """What closes a block at which the request ends."""
    return tokenizer.encode(dialect.join.close_block)


def plan_join(dialect: Dialect, threads: list[Branch], tokenizer: Tokenizer) -> JoinPlan:
    """Join ``threads`` (in outline order, all ended)."""
    token_ids: list[int] = []
    for thread in threads:
        assert thread.plan is not None
        token_ids += thread.plan.joined_header_ids
        token_ids += body(dialect, thread, tokenizer)
    ends = [t.end for t in threads]
    fatal = next((e for e in ends if end_policy(dialect, e) is Policy.END_REQUEST), None)
    closing = close_block_ids(dialect, tokenizer) if fatal else tokenizer.encode(dialect.join.text)
    return JoinPlan((*token_ids, *closing), tuple(closing), fatal)
