"""What a branch's context becomes when its threads have ended."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkjoin_scheduler.dialects.patterns import Match, find_all
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.thread_end import ThreadEnd

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.dialect import Dialect
    from forkjoin_scheduler.dialects.tokenizer import Tokenizer
    from forkjoin_scheduler.families.family import Branch


@dataclass(frozen=True)
class JoinPlan:
    """How a branch goes on.

    ``token_ids`` are appended to its context, of which a call that is rewritten has been cut off
    behind ``keep`` tokens; ``closing_ids`` are those of them behind the last thread. ``end``: if
    set, the branch ends after the block, for this reason of a thread.
    """

    token_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]
    end: ThreadEnd | None
    keep: int | None = None


def body(dialect: Dialect, thread: Branch, tokenizer: Tokenizer) -> list[int]:
    """The text of ``thread`` after its header, closed as the dialect closes it."""
    return written(thread) + closing_ids_of(dialect, thread, tokenizer)


def closing_ids_of(dialect: Dialect, thread: Branch, tokenizer: Tokenizer) -> list[int]:
    """What the engine writes after the text of ``thread``, which has ended."""
    assert thread.plan is not None
    if thread.end is ThreadEnd.CUT:
        return []
    ends_itself = thread.end is ThreadEnd.STOP and thread.plan.end is not None
    closing = ("" if ends_itself else dialect.thread.close) + dialect.thread.tail
    return tokenizer.encode(closing + between(dialect, thread))


def between(dialect: Dialect, thread: Branch) -> str:
    """What stands between ``thread`` and the next one that is joined with it; after the last, nothing."""
    return dialect.thread.between if dialect.thread.between and not thread.is_last else ""


def written(thread: Branch) -> list[int]:
    """What ``thread`` has written of its text: all but an end of sequence."""
    return thread.token_ids[:-1] if is_by_eos(thread, thread.end) else list(thread.token_ids)


def is_by_eos(thread: Branch, end: ThreadEnd | None) -> bool:
    """Whether ``thread``, if it ended in this way, wrote an end of sequence, which is not shown."""
    assert thread.plan is not None
    return end is ThreadEnd.EOS or (end is ThreadEnd.STOP and thread.plan.end is None)


def joined_ids(dialect: Dialect, thread: Branch, tokenizer: Tokenizer) -> list[int]:
    """What stands of ``thread`` in the joined context: a header, and what returns of it."""
    plan = thread.plan
    assert plan is not None
    ids = body(dialect, thread, tokenizer)
    if dialect.thread.returns is None:
        return [*plan.joined_header_ids, *ids]
    result = last_match(dialect.thread.returns, tokenizer.decode(ids))
    if result is not None:
        return [*plan.joined_header_ids, *tokenizer.encode(result), *plan.returned_end_ids]
    if plan.failed_header_ids is not None:
        return list(plan.failed_header_ids)
    return [*plan.joined_header_ids, *plan.returned_end_ids]


def last_match(pattern: str, text: str) -> str | None:
    """The last match of ``pattern`` in ``text``: its group ``result``, if it has one.

    None also where the search takes too long.
    """
    matches = find_all(pattern, text)
    return result_of(matches[-1]) if matches else None


def result_of(match: Match) -> str | None:
    """The group ``result`` of ``match``, or all of it where it has none."""
    result: str | None = match["result" if "result" in match.groupdict() else 0]
    return result


def end_policy(dialect: Dialect, end: ThreadEnd | None) -> Policy | None:
    """The policy for a thread that ended without its end tag, None for any other end."""
    if end is ThreadEnd.EOS:
        return dialect.policies.thread_eos
    return dialect.policies.thread_length if end is ThreadEnd.LENGTH else None


def close_block_ids(dialect: Dialect, tokenizer: Tokenizer) -> list[int]:
    """What closes a block at which the request ends."""
    return tokenizer.encode(dialect.join.close_block)


def plan_join(
    dialect: Dialect,
    threads: Sequence[Branch],
    tokenizer: Tokenizer,
    closing_ids: Sequence[int] | None = None,
) -> JoinPlan:
    """Join ``threads`` (in outline order, all ended).

    ``closing_ids``: what the request itself wants after them, in the place of the dialect's own text.
    """
    token_ids: list[int] = tokenizer.encode(dialect.join.opened)
    for thread in threads:
        token_ids += joined_ids(dialect, thread, tokenizer)
    ends = [t.end for t in threads]
    fatal = next((e for e in ends if end_policy(dialect, e) is Policy.END_REQUEST), None)
    if fatal:
        closing = close_block_ids(dialect, tokenizer)
    else:
        closing = list(closing_ids) if closing_ids is not None else tokenizer.encode(dialect.join.text)
    return JoinPlan((*token_ids, *closing), tuple(closing), fatal)


def cut_last(opens: str, context: Sequence[int], tokenizer: Tokenizer) -> tuple[int, list[int]]:
    """How many tokens stand before the last ``opens``, and the text of a token that reaches into it.

    This runs between steps, and a call may be thousands of tokens: it is decoded few times.
    """

    def decoded(keep: int) -> str:
        return tokenizer.decode(list(context[keep:]))

    # A longer end of the context has all that a shorter one has, also of texts of several tokens.
    num_with = bisect_left(range(len(context)), True, key=lambda keep: opens not in decoded(keep))
    if not num_with:
        return len(context), []
    keep = num_with - 1
    return keep, tokenizer.encode(decoded(keep).partition(opens)[0])
