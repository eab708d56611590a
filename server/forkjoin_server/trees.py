"""Trees of answers, made of the events that tell of their segments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from forkjoin.tree.segment import ROOT, Joined, Segment
from forkjoin.tree.tree import Tree
from forkjoin_scheduler.publish.events import (
    Event,
    Forked,
    SegmentBegan,
    SegmentGiven,
    SegmentWrote,
    ThreadEnded,
    Voted,
)
from forkjoin_scheduler.request.given import Part

#: A version of the weights, the first token that it sampled, and the one after the last.
Span = tuple[str | None, int, int]
#: How a thread ended that had not when its request did.
CANCELLED = "cancelled"


class TreeBuilder:
    """Gathers the events of one family. Of a request without events ``sequential`` makes the tree."""

    def __init__(self, *, closes_threads: bool = False) -> None:
        #: Whether a join may close a thread with another segment, as stitched joins do.
        self._closes_threads = closes_threads
        self._segments: list[Segment] = []
        self._titles: dict[int, str] = {}
        self._ends: dict[int, str] = {}
        self._voted: int | None = None
        #: The numbers of segments that ``take_ended`` has given.
        self.taken: set[int] = set()

    @property
    def has_segments(self) -> bool:
        """Whether the family was recorded. One that is kept has events without it."""
        return bool(self._segments)

    def hear(self, events: Iterable[Event]) -> None:
        """Take in what happened, in its order."""
        for event in events:
            match event:
                case SegmentBegan():
                    self._segments.append(_begun(event))
                case SegmentGiven(segment=number, part=part):
                    _give(self._segments[number], part)
                case SegmentWrote():
                    _write(self._segments[event.segment], event)
                case Forked(threads=threads):
                    self._titles |= {thread.index: thread.title for thread in threads}
                case ThreadEnded(index=index, reason=reason):
                    self._ends[index] = reason.value
                case Voted(index=index):
                    self._voted = index

    def take_ended(self) -> list[tuple[int, Segment]]:
        """Segments that have ended since this was asked last, with their numbers: nothing changes them.

        The last one of a thread has ended with it or, where a join may close it with another one, when its
        parent goes on.
        """
        last, forked_by = dict[int, int](), dict[int, int | None]()
        for number, segment in enumerate(self._segments):
            last[segment.thread] = number
            forked_by.setdefault(segment.thread, segment.forked_by)

        def is_over(thread: int) -> bool:
            parent = forked_by[thread]
            if thread not in self._ends or parent is None:
                return False
            return not self._closes_threads or last[self._segments[parent].thread] > last[thread]

        ended = []
        for number, segment in enumerate(self._segments):
            thread, is_last = segment.thread, last[segment.thread] == number
            if number not in self.taken and (not is_last or is_over(thread)):
                segment.finish_reason = self._ends[thread] if is_last else None
                segment.title = self._titles.get(thread, "")
                ended.append((number, segment))
        self.taken.update(number for number, _ in ended)
        return ended

    def tree(self, answer_ids: Sequence[int], finish_reason: str | None) -> Tree:
        """The tree as it is now, of the answer that a stock client sees."""
        last = {segment.thread: segment for segment in self._segments}
        for thread, segment in last.items():
            segment.finish_reason = finish_reason if thread == ROOT else self._ends.get(thread, CANCELLED)
        for segment in self._segments:
            segment.title = self._titles.get(segment.thread, "")
        return Tree(self._segments, list(answer_ids), self._voted)


def tree_of(
    builder: TreeBuilder | None,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    logprobs: Iterable[Any] | None,
    num_top: int,
    seed: int | None,
    finish_reason: str | None,
    versions: Sequence[Any] | None = None,
) -> Tree:
    """The tree of an answer: what ``builder`` has heard of it, else one segment.

    ``logprobs`` are vLLM's: of each token of the answer an object with a ``logprob`` for it, and for those of
    the ``num_top`` likeliest. ``versions``: its spans of tokens by the weights that sampled them.
    """
    if builder is not None and builder.has_segments:
        return builder.tree(answer_ids, finish_reason)
    values = None
    if logprobs is not None:
        values = [{token: told.logprob for token, told in row.items()} for row in logprobs]
    spans = [(span.version, span.start, span.end) for span in versions or ()]
    return sequential(prompt_ids, answer_ids, values, num_top, seed, finish_reason, spans)


def sequential(
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    logprobs: Sequence[dict[int, float]] | None,
    num_top: int,
    seed: int | None,
    finish_reason: str | None,
    spans: Sequence[Span] = (),
) -> Tree:
    """The tree of a request that has not forked: one segment, or one for each of ``spans`` of the answer.

    ``logprobs``: of each token of the answer its own, and those of the ``num_top`` most likely ones.
    """
    own = top = None
    if logprobs is not None:
        own = [row[token] for token, row in zip(answer_ids, logprobs, strict=True)]
        top = [_most_likely(row, num_top) for row in logprobs] if num_top else None
    segments: list[Segment] = []
    for version, start, end in spans or [(None, 0, len(answer_ids))]:
        segment = _following(segments, prompt_ids)
        segment.seed, segment.weight_version = seed, version
        part = slice(start, end)
        _append(segment, answer_ids[part], own and own[part], top and top[part])
        segments.append(segment)
    segments[-1].finish_reason = finish_reason
    return Tree(segments, list(answer_ids))


def _following(segments: Sequence[Segment], prompt_ids: Sequence[int]) -> Segment:
    """One that goes on where ``segments`` end; the first has the prompt."""
    if not segments:
        return Segment(ROOT, list(prompt_ids), len(prompt_ids), 0)
    last = segments[-1]
    num = len(last.token_ids)
    return Segment(ROOT, [], 0, last.position + num, parent=len(segments) - 1, fork_offset=num)


def _most_likely(row: dict[int, float], num: int) -> dict[int, float]:
    likely = sorted(row.items(), key=lambda item: -item[1])
    return dict(likely if num < 0 else likely[:num])


def _begun(event: SegmentBegan) -> Segment:
    return Segment(
        thread=event.index,
        token_ids=list(event.token_ids),
        num_injected=len(event.token_ids),
        position=event.position,
        parent=event.parent,
        fork_offset=event.fork_offset,
        forked_by=event.forked_by,
        joined=[Joined(j.segment, j.num_tokens, j.num_skipped) for j in event.joined],
        seed=event.seed,
        has_old_kv=event.has_old_kv,
    )


def _write(segment: Segment, event: SegmentWrote) -> None:
    segment.weight_version = event.weight_version
    _append(segment, event.token_ids, event.logprobs, event.top)


def _give(segment: Segment, part: Part) -> None:
    segment.weight_version, segment.seed, segment.has_old_kv = (
        part.weight_version,
        part.seed,
        part.has_old_kv,
    )
    _append(segment, part.token_ids, part.logprobs, part.top)


def _append(
    segment: Segment,
    token_ids: Sequence[int],
    logprobs: Sequence[float | None] | None,
    top: Sequence[dict[int, float]] | None,
) -> None:
    """Append sampled tokens. Tokens before them that have no logprobs were injected."""
    num = len(segment.token_ids)
    if logprobs is not None:
        if segment.logprobs is None:
            segment.logprobs = [None] * num
        segment.logprobs += logprobs
    if top is not None:
        if segment.top_logprobs is None:
            segment.top_logprobs = [{} for _ in range(num)]
        segment.top_logprobs += top
    segment.token_ids += token_ids
