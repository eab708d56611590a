"""What a segment sees, as places: a segment's number, and an offset in it."""

from __future__ import annotations

from collections.abc import Sequence

from forkjoin.tree.segment import Segment

#: The number of a segment, and the offset of one of its own tokens.
Place = tuple[int, int]


def places(segments: Sequence[Segment], number: int, num_tokens: int) -> list[Place]:
    """The first ``num_tokens`` tokens of segment ``number``, and before them all that they see."""
    return [*places_before(segments, number), *((number, offset) for offset in range(num_tokens))]


def places_before(segments: Sequence[Segment], number: int) -> list[Place]:
    """All that the first token of segment ``number`` sees."""
    segment = segments[number]
    if segment.parent is None:
        return []
    seen = places(segments, segment.parent, segment.fork_offset)
    num_shared = len(seen)
    for thread in segment.joined:
        seen += places(segments, thread.segment, thread.num_tokens)[num_shared + thread.num_skipped :]
    return seen
