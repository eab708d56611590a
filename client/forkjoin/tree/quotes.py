"""Where the text of an answer was sampled: it quotes threads, which a re-prefill injects into the parent."""

from __future__ import annotations

from collections.abc import Sequence

from forkjoin.tree.context import Place, places, places_before
from forkjoin.tree.segment import Segment


def quoted(segments: Sequence[Segment], ids: list[int], read: list[Place]) -> list[Place | None]:
    """For each of ``ids`` the place where it was sampled; None where that is not known, or it was injected.

    ``read``: what the last segment has read, which is ``ids`` as far as they agree. Texts of threads are
    searched for after what forked them, in their order. The last token of one may be another there: the
    dialect writes how a thread ends. A thread that is not there as a whole is not found.
    """
    found: list[Place | None] = [None] * len(ids)
    ends: dict[int, int] = {}  # of segments that are found, the index after their last token
    for index, (token, place) in enumerate(zip(ids, read, strict=False)):
        number, offset = place
        if segments[number].token_ids[offset] != token:
            break
        ends[number] = index + 1
        found[index] = place if _is_sampled(segments, place) else None
    for own in _threads(segments):
        forked_by = segments[own[0]].forked_by
        if forked_by not in ends or own[0] in ends:  # not in the text; or joined by its KV, and found above
            continue
        written = _written(segments, own)
        start, num_tokens = _find(ids, [_token(segments, place) for place in written], ends[forked_by])
        for index, place in enumerate(written[:num_tokens], start):
            found[index] = place if _is_sampled(segments, place) else found[index]
            ends[place[0]] = index + 1
        ends[forked_by] = start + num_tokens  # the next thread of this fork stands after it
    return found


def _threads(segments: Sequence[Segment]) -> list[list[int]]:
    """The segments of each thread."""
    threads: dict[int, list[int]] = {}
    for number, segment in enumerate(segments):
        if segment.thread >= 0:
            threads.setdefault(segment.thread, []).append(number)
    return [threads[index] for index in sorted(threads)]


def _written(segments: Sequence[Segment], own: list[int]) -> list[Place]:
    """What stands in a thread after its header; ``own``: its segments."""
    text = places(segments, own[-1], len(segments[own[-1]].token_ids))
    return text[len(places_before(segments, own[0])) + segments[own[0]].num_injected :]


def _find(ids: list[int], wanted: list[int], start: int) -> tuple[int, int]:
    """Where ``wanted`` stands in ``ids`` from ``start`` on, and how many tokens of it do.

    These are all, or all but the last, or none at ``start``.
    """
    for num in (len(wanted), len(wanted) - 1):
        for index in range(start, len(ids) - num + 1) if num > 0 else ():
            if ids[index : index + num] == wanted[:num]:
                return index, num
    return start, 0


def _token(segments: Sequence[Segment], place: Place) -> int:
    number, offset = place
    return segments[number].token_ids[offset]


def _is_sampled(segments: Sequence[Segment], place: Place) -> bool:
    number, offset = place
    return offset >= segments[number].num_injected
