"""A tree in one row, as one forward pass computes it: positions, and who attends to whom.

Segments stand one after the other, each after those whose tokens it sees. Of another segment, a segment sees
either nothing or tokens in a row. So the whole mask is described by two numbers for each pair of segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from forkjoin.tree.segment import Segment

#: Which tokens of a segment are seen: the first of them, and the one after the last.
Seen = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """All tokens of a tree in a row, by place."""

    token_ids: list[int]
    positions: list[int]
    #: The place whose logits a token was sampled from; -1: nothing in the tree predicts it.
    predictors: list[int]
    sampled: list[bool]
    #: None where a token was injected, or nobody asked.
    logprobs: list[float | None]
    #: The segment of each token, and the token's place in it.
    segment_of: list[int]
    offset_of: list[int]
    #: Which tokens of the segment (column) a segment (row) sees: from ``first`` to before ``end``.
    first: list[list[int]]
    end: list[list[int]]

    def attention_mask(self) -> list[list[bool]]:
        """Who (row) attends to whom (column), for trees that are small enough: n × n values."""
        mask, before = [], [False]
        for place, (segment, offset) in enumerate(zip(self.segment_of, self.offset_of, strict=True)):
            if not offset:
                first, end = self.first[segment], self.end[segment]
                others = zip(self.segment_of, self.offset_of, strict=True)
                before = [first[n] <= other < end[n] for n, other in others]
            row = list(before)
            row[place - offset : place + 1] = [True] * (offset + 1)
            mask.append(row)
        return mask

    def mask_mod(self, tensor: Callable[[list[Any]], Any]) -> Callable[[Any, Any, Any, Any], Any]:
        """The mask as FlexAttention's ``mask_mod``.

        ``tensor`` makes tensors of lists on your device: ``partial(torch.tensor, device="cuda")``.
        """
        segment_of, offset_of = tensor(self.segment_of), tensor(self.offset_of)
        first, end = tensor(self.first), tensor(self.end)

        def sees(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
            here, there, at = segment_of[query], segment_of[key], offset_of[key]
            is_before = (here != there) & (at >= first[here, there]) & (at < end[here, there])
            return is_before | ((here == there) & (key <= query))

        return sees


def lay_out(segments: Sequence[Segment]) -> Layout:
    """``segments`` in a row. Raises ValueError where one sees a segment that stands after it."""
    seen: list[dict[int, Seen]] = []
    starts: list[int] = []
    for number, segment in enumerate(segments):
        needed = [segment.parent] if segment.parent is not None else []
        if any(other >= number for other in [*needed, *(j.segment for j in segment.joined)]):
            raise ValueError(f"segment {number}: expected to see earlier segments only, got {segment}")
        seen.append(_seen_by(segment, segments, seen))
        starts.append(starts[-1] + len(segments[number - 1].token_ids) if number else 0)
    places = [(n, offset) for n, s in enumerate(segments) for offset in range(len(s.token_ids))]
    everyone = range(len(segments))
    return Layout(
        token_ids=[t for s in segments for t in s.token_ids],
        positions=[segments[n].position + offset for n, offset in places],
        predictors=[
            starts[n] + offset - 1 if offset else _predictor(segments[n], starts) for n, offset in places
        ],
        sampled=[is_sampled for s in segments for is_sampled in s.sampled],
        logprobs=[p for s in segments for p in s.logprobs or [None] * len(s.token_ids)],
        segment_of=[n for n, _ in places],
        offset_of=[offset for _, offset in places],
        first=[[seen[n].get(other, (0, 0))[0] for other in everyone] for n in everyone],
        end=[[seen[n].get(other, (0, 0))[1] for other in everyone] for n in everyone],
    )


def _seen_by(segment: Segment, segments: Sequence[Segment], seen: list[dict[int, Seen]]) -> dict[int, Seen]:
    """What ``segment`` sees of those before it, whose own ``seen`` is known."""
    if segment.parent is None:
        return {}
    context = {**seen[segment.parent], segment.parent: (0, segment.fork_offset)}
    shared = context.keys() | set()
    for joined in segment.joined:
        of_thread = {**seen[joined.segment], joined.segment: (0, joined.num_tokens)}
        new = {n: tokens for n, tokens in of_thread.items() if n not in shared}
        opening = min(new)  # the thread's first segment: all others go on from it
        new[opening] = (joined.num_skipped, new[opening][1])
        context |= new
    return context


def _predictor(segment: Segment, starts: list[int]) -> int:
    """The place that predicts the first token of ``segment``. Behind stitched threads there is none."""
    if segment.parent is None or segment.joined or not segment.fork_offset:
        return -1
    return starts[segment.parent] + segment.fork_offset - 1
