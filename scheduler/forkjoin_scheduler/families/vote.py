"""What threads vote for: the last match of a regex at the end of what each has written."""

from __future__ import annotations

from collections.abc import Sequence

from forkjoin_scheduler.dialects.patterns import find_linear, program_size
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.joins.joined import result_of, written
from forkjoin_scheduler.policy.tally import Tally

#: What the searches of one vote may take: characters read of all threads times instructions of the pattern.
#: Of patterns made to be slow each takes 7 ns, together 7 ms; of 16 threads an ordinary pattern of 30
#: instructions reads the last 2,000 characters each. It is no time, which a busy machine would use up: an
#: answer must not depend on that.
_VOTE_WORK = 1_000_000
_MIN_VOTE_CHARS, _MAX_VOTE_CHARS = 128, 8192
#: How many characters of an end are searched first. More are only while there is no match, so this is also
#: the most matches that are passed over, at 4 microseconds each.
_FIRST_CHARS = 32


class Vote:
    """The votes of a family's ``num_threads`` threads. Each is read once, when its thread has ended."""

    def __init__(self, pattern: str, tokenizer: Tokenizer, num_threads: int) -> None:
        self._pattern = pattern
        self._tokenizer = tokenizer
        self._num_chars = num_vote_chars(pattern, num_threads)
        self._results: dict[Branch, str | None] = {}
        self._has_news = False

    def read(self, thread: Branch) -> None:
        """Read the vote of ``thread``, which has ended by itself or at a limit. It may have none."""
        self._has_news = True
        self._results[thread] = self._seek(written(thread))

    def peek(self, thread: Branch) -> str | None:
        """What ``thread``, which runs, would vote for now, as far as its last words say."""
        return self._seek(thread.token_ids[-_MIN_VOTE_CHARS:])

    def _seek(self, ids: list[int]) -> str | None:
        # a token has a character at least, or is a part of one
        text = self._tokenizer.decode(ids[-self._num_chars :])[-self._num_chars :]
        result = _last_match_from_behind(self._pattern, text)
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
            {t.sibling_index: self._results[t] for t in threads if t in self._results},
            frozenset(t.sibling_index for t in threads if t.is_live),
        )

    def winner(self, threads: Sequence[Branch]) -> tuple[Branch, str | None]:
        """The one of ``threads`` that is the answer, and its result: the first where nobody has voted.

        Of one that was stopped nothing is the answer, unless there is no other.
        """
        tally = self.tally(threads)
        return next((t for t in threads if t.sibling_index == tally.winner), threads[0]), tally.leader


def num_vote_chars(pattern: str, num_threads: int) -> int:
    """How many characters of each thread's end a vote by ``pattern`` is sought in."""
    num_chars = _VOTE_WORK // (program_size(pattern) * num_threads)
    return min(max(num_chars, _MIN_VOTE_CHARS), _MAX_VOTE_CHARS)


def _last_match_from_behind(pattern: str, text: str) -> str | None:
    """The last match, sought at the end first.

    A match at the start of what is read may begin before it.
    """
    num_chars = _FIRST_CHARS
    while True:
        matches = find_linear(pattern, text[-num_chars:])
        if num_chars >= len(text) or (matches and matches[-1].start() > 0):
            return result_of(matches[-1]) if matches else None
        num_chars *= 4
