"""The lanes of an answer whose times nobody took, over decoding steps: whatever runs writes a token in each.

How many tokens of a parent come before a fork nobody says. It is as much of them as of its text: what stands
before the threads' texts, which its own text holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from forkjoin.answer import ROOT, Answer, Thread
from forkjoin.lanes import ANSWER, Lane, Lanes, Split


def lanes_in_steps(answer: Answer, forks: Sequence[Sequence[int]] | None = None) -> Lanes:
    """The lanes of ``answer``. ``forks``: which threads started together; else that is read from its text."""
    return Lanes.of(_Placing(answer, forks).lanes)


class _Placing:
    def __init__(self, answer: Answer, forks: Sequence[Sequence[int]] | None) -> None:
        self._answer, self._forks = answer, forks
        self.lanes: list[Lane] = []
        in_threads = sum(_tokens(thread) for thread in answer.threads)
        own = max(0, (answer.usage.completion_tokens if answer.usage else in_threads) - in_threads)
        lane = Lane(index=ANSWER, title="answer", depth=0, start=0, num_tokens=own)
        lane.finish_reason = answer.finish_reason
        self._place(lane, ROOT, answer.reasoning + answer.content)

    def _place(self, lane: Lane, branch_id: str, text: str) -> None:
        """Fill in what ``lane`` does from its start on, and the lanes of its threads."""
        self.lanes.append(lane)
        at, read = lane.start, 0
        forks = self._forks_of(branch_id, text)
        own_chars = max(
            1, len(text) - sum(len(t.content) for fork in forks for t in fork if t.content in text)
        )
        for fork in forks:
            found = text.find(fork[0].content, read)
            own = max(0, found - read) / own_chars if found >= 0 else 1 / (len(forks) + 1)
            at += own * lane.num_tokens
            split = Split(start=at, threads=[thread.index for thread in fork])
            lane.splits.append(split)
            ends = [self._thread(thread, lane.depth + 1, at) for thread in fork]
            at = split.end = max(ends)
            for thread in fork:
                read = max(read, text.find(thread.content, read) + len(thread.content))
        # Its own tokens, and the longest thread of each fork.
        waited = sum((split.end or 0) - split.start for split in lane.splits)
        lane.end = lane.start + lane.num_tokens + waited

    def _thread(self, thread: Thread, depth: int, start: float) -> float:
        lane = Lane(index=thread.index, title=thread.title, depth=depth, start=start)
        lane.num_tokens, lane.finish_reason = _tokens(thread), thread.finish_reason
        self._place(lane, thread.id, thread.content)
        return lane.end or start

    def _forks_of(self, branch_id: str, text: str) -> list[list[Thread]]:
        threads = self._answer.children(branch_id)
        if self._forks is not None:
            groups = [[t for t in threads if t.index in fork] for fork in self._forks]
            return [group for group in groups if group]
        forks: list[list[Thread]] = []
        read = 0
        for thread in threads:
            found = text.find(thread.content, read) if thread.content else -1
            between = text[read:found] if found >= 0 else ""
            if not forks or (thread.title and thread.title in between):
                forks.append([])  # its outline stands after the threads before it
            forks[-1].append(thread)
            read = found + len(thread.content) if found >= 0 else read
        return forks


def _tokens(thread: Thread) -> int:
    return thread.usage.completion_tokens if thread.usage else 0
