"""What threads vote for: the last match of a regex at the end of what each has written."""

from __future__ import annotations

import time
from collections.abc import Sequence

from forkjoin_scheduler.dialect import Tokenizer
from forkjoin_scheduler.family import Branch
from forkjoin_scheduler.join import last_match, result_of, written
from forkjoin_scheduler.patterns import find_all, program_size
from forkjoin_scheduler.policy.tally import Tally

#: What the searches of one vote may take: characters read of all threads times instructions of the pattern.
#: Of patterns made to be slow each takes 7 ns, together 7 ms; of 16 threads an ordinary pattern of 30
#: instructions reads the last 2,000 characters each.
_VOTE_WORK = 1_000_000
_MIN_VOTE_CHARS, _MAX_VOTE_CHARS = 128, 8192
#: Processor time of the engine after which a vote is sought in no further thread. Ordinary votes take
#: 20 microseconds of each.
VOTE_S = 0.01


class Vote:
    """The votes of a family's ``num_threads`` threads. Each is read once, when its thread has ended."""

    def __init__(self, pattern: str, tokenizer: Tokenizer, num_threads: int) -> None:
        self._pattern = pattern
        self._tokenizer = tokenizer
        self._num_chars = num_vote_chars(pattern, num_threads)
        self._results: dict[Branch, str | None] = {}
        self._spent_s = self._spent_peeking_s = 0.0
        self._has_news = False

    def read(self, thread: Branch) -> None:
        """Read the vote of ``thread``, which has ended by itself or at a limit.

        It has none if its end does not match, or if the searches before it took too long.
        """
        self._has_news = True
        if self._spent_s > VOTE_S:
            self._results[thread] = None
            return
        # a token has a character at least, or is a part of one
        text = self._tokenizer.decode(written(thread)[-self._num_chars :])[-self._num_chars :]
        start = time.thread_time()
        result = _last_match_from_behind(self._pattern, text)
        self._spent_s += time.thread_time() - start
        self._results[thread] = None if result is None else result.strip()

    def peek(self, thread: Branch) -> str | None:
        """What ``thread``, which runs, would vote for now, as far as its last words say.

        Nothing where the searches before it took too long; those of the votes themselves do not count.
        """
        if self._spent_peeking_s > VOTE_S:
            return None
        start = time.thread_time()
        result = last_match(self._pattern, self._tokenizer.decode(thread.token_ids[-_MIN_VOTE_CHARS:]))
        self._spent_peeking_s += time.thread_time() - start
        return None if result is None else result.strip()

    def lose_one(self) -> None:
        """A thread was stopped from outside, and will not vote."""
        self._has_news = True

    def take_news(self) -> bool:
        """Whether a vote was read, or a thread stopped, since this was asked last."""
        has_news, self._has_news = self._has_news, False
        return has_news

    def tally(self, threads: Sequence[Branch]) -> Tally:
        """Where the vote of ``threads`` stands."""
        return Tally(
            {t.position: self._results[t] for t in threads if t in self._results},
            frozenset(t.position for t in threads if t.is_live),
        )

    def winner(self, threads: Sequence[Branch]) -> tuple[Branch, str | None]:
        """The one of ``threads`` that is the answer, and its result: the first where nobody has voted.

        Of one that was stopped nothing is the answer, unless there is no other.
        """
        tally = self.tally(threads)
        return next((t for t in threads if t.position == tally.winner), threads[0]), tally.leader


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
            return result_of(matches[-1])
        num_chars *= 4
    return last_match(pattern, text)
