"""What a branch's context becomes when its threads have ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from forkjoin_scheduler.dialect import Dialect, Policy, Tokenizer
from forkjoin_scheduler.family import Branch, ThreadEnd
from forkjoin_scheduler.patterns import Match, find_all, program_size


@dataclass(frozen=True)
class JoinPlan:
    """How a branch goes on.

    ``token_ids`` are appended to its context, of which a call that is rewritten has been cut off
    behind ``keep`` tokens; ``closing_ids`` are those of them behind the last thread. ``end``: if
    set, the branch ends behind the block, for this reason of a thread.
    """

    token_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]
    end: ThreadEnd | None
    keep: int | None = None


def body(dialect: Dialect, thread: Branch, tokenizer: Tokenizer) -> list[int]:
    """The text of ``thread`` behind its header, closed as the dialect closes it."""
    assert thread.plan is not None
    if thread.end is ThreadEnd.CUT:
        return list(thread.token_ids)
    ends_itself = thread.end is ThreadEnd.STOP and thread.plan.end is not None
    return written(thread) + tokenizer.encode(
        ("" if ends_itself else dialect.thread.close) + dialect.thread.tail
    )


def written(thread: Branch) -> list[int]:
    """What ``thread`` has written of its text: all but an end of sequence."""
    assert thread.plan is not None
    by_eos = thread.end is ThreadEnd.EOS or (thread.end is ThreadEnd.STOP and thread.plan.end is None)
    return thread.token_ids[:-1] if by_eos else list(thread.token_ids)


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
    return _result(matches[-1]) if matches else None


def _result(match: Match) -> str | None:
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

    ``closing_ids``: what the request itself wants behind them, in the place of the dialect's own text.
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


def plan_rewrite(
    dialect: Dialect, threads: Sequence[Branch], context: Sequence[int], tokenizer: Tokenizer
) -> JoinPlan:
    """Join ``threads`` in the place of the call at the end of ``context`` that started them."""
    assert dialect.join.opens is not None
    plan = plan_join(dialect, threads, tokenizer)
    keep, before = cut_last(dialect.join.opens, context, tokenizer)
    return JoinPlan((*before, *plan.token_ids), plan.closing_ids, plan.end, keep)


def cut_last(opens: str, context: Sequence[int], tokenizer: Tokenizer) -> tuple[int, list[int]]:
    """How many tokens stand before the last ``opens``, and the text of a token that reaches into it."""
    if opens not in tokenizer.decode(list(context)):
        return len(context), []
    for keep in range(len(context) - 1, -1, -1):
        before, found, _ = tokenizer.decode(list(context[keep:])).partition(opens)
        if found:
            return keep, tokenizer.encode(before)
    return len(context), []


#: What the searches of one vote may take: characters read of all threads times instructions of the pattern.
#: Of patterns made to be slow each takes 7 ns, together 7 ms; of 16 threads an ordinary pattern of 30
#: instructions reads the last 2,000 characters each.
_VOTE_WORK = 1_000_000
_MIN_VOTE_CHARS, _MAX_VOTE_CHARS = 128, 8192
#: Processor time of the engine after which a vote is sought in no further thread. Ordinary votes take
#: 20 microseconds of each.
VOTE_S = 0.01


def num_vote_chars(pattern: str, num_threads: int) -> int:
    """How many characters of each thread's end a vote by ``pattern`` is sought in."""
    num_chars = _VOTE_WORK // (program_size(pattern) * num_threads)
    return min(max(num_chars, _MIN_VOTE_CHARS), _MAX_VOTE_CHARS)


def _last_match_from_behind(pattern: str, text: str) -> str | None:
    """``last_match``, sought at the end first: each match that is passed over takes microseconds.

    A match at the start of what is read may begin before it.
    """
    num_chars = _MIN_VOTE_CHARS
    while num_chars < len(text):
        matches = find_all(pattern, text[-num_chars:])
        if matches and matches[-1].start() > 0:
            return _result(matches[-1])
        num_chars *= 4
    return last_match(pattern, text)


def _in_time(pattern: str, texts: Iterable[str]) -> Iterator[str | None]:
    """The vote of each of ``texts``; none where the searches before it took too long."""
    spent_s = 0.0
    for text in texts:
        if spent_s > VOTE_S:
            yield None
            continue
        start = time.thread_time()
        result = _last_match_from_behind(pattern, text)
        spent_s += time.thread_time() - start
        yield result


def vote(dialect: Dialect, threads: Sequence[Branch], tokenizer: Tokenizer) -> tuple[Branch, str | None]:
    """The first thread whose result most threads have, and that result.

    A thread whose end does not match, or is not searched in time, has no vote; the first thread wins where
    none has.
    """
    pattern = dialect.join.result
    assert pattern is not None
    num_chars = num_vote_chars(pattern, len(threads))
    # a token has a character at least, or is a part of one
    texts = (tokenizer.decode(written(t)[-num_chars:])[-num_chars:] for t in threads)
    results = list(_in_time(pattern, texts))
    votes = Counter(r.strip() for r in results if r is not None)
    if not votes:
        return threads[0], None
    winner = max(votes, key=lambda result: votes[result])
    first = next(t for t, r in zip(threads, results, strict=True) if r is not None and r.strip() == winner)
    return first, winner
