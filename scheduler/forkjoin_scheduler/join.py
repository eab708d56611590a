"""What the parent's context becomes when its threads have ended."""

from __future__ import annotations

from dataclasses import dataclass

from forkjoin_scheduler.dialect import Dialect, Policy, Tokenizer
from forkjoin_scheduler.family import Thread, ThreadEnd


@dataclass(frozen=True)
class JoinPlan:
    """How a family goes on.

    ``token_ids`` are appended to the parent's context; the first ``num_adopted`` of them have KV
    in the first thread's blocks, the others are prefilled. ``closing_ids``: the part of the
    transcript that follows the last thread. ``end``: if set, the request ends behind the block,
    for this reason of a thread.
    """

    token_ids: tuple[int, ...]
    num_adopted: int
    closing_ids: tuple[int, ...]
    end: ThreadEnd | None


def body(dialect: Dialect, thread: Thread, tokenizer: Tokenizer) -> list[int]:
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


def plan_join(dialect: Dialect, threads: list[Thread], tokenizer: Tokenizer) -> JoinPlan:
    """Join ``threads`` (in outline order, all ended)."""
    token_ids: list[int] = []
    for thread in threads:
        token_ids += thread.plan.joined_header_ids
        token_ids += body(dialect, thread, tokenizer)
    ends = [t.end for t in threads]
    fatal = next((e for e in ends if end_policy(dialect, e) is Policy.END_REQUEST), None)
    closing = dialect.join.text + (dialect.join.close_block if fatal else "")
    closing_ids = tuple(tokenizer.encode(closing))
    first = threads[0]
    # The last token a thread sampled was never fed to the model in sync scheduling: its KV is
    # left out, so that one rule serves both modes.
    num_adopted = len(first.plan.header_ids) + max(len(first.token_ids) - 1, 0)
    return JoinPlan((*token_ids, *closing_ids), num_adopted, closing_ids, fatal)
