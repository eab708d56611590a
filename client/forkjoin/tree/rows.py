"""A tree as plain rows, for trainers that know only prompts and completions.

``rows`` gives a row for each context, so that each sampled token stands once, after what it was sampled from.
``transcript`` gives one row: the answer, with the threads one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forkjoin.tree.context import Place, places, places_before
from forkjoin.tree.quotes import quoted
from forkjoin.tree.segment import ROOT, Segment


@dataclass(frozen=True)
class Row:
    """A prompt and its completion."""

    #: The thread whose row it is; ``ROOT``: the request itself.
    thread: int
    prompt_ids: list[int]
    completion_ids: list[int]
    #: For each token of the completion: 1 if the loss counts it, 0 if it was injected or counts elsewhere.
    mask: list[int]
    #: For each token of the completion, as it was sampled; 0.0 where ``mask`` is 0.
    logprobs: list[float]
    #: Whether one causal pass over the row gives these logprobs to the tokens that count.
    is_exact: bool


def rows(segments: Sequence[Segment]) -> list[Row]:
    """One row for each thread that sampled tokens, the request's own first; each sampled token counts in one.

    A thread has more than one where it did not go on from all that it had written. Raises ValueError if the
    segments have no logprobs.
    """
    found = []
    for chain in _chains(segments):
        text = places(segments, chain[-1], len(segments[chain[-1]].token_ids))
        start = len(places_before(segments, chain[0])) + segments[chain[0]].num_injected
        counts = [place if place[0] in chain and _is_sampled(segments, place) else None for place in text]
        if any(counts):
            ids = [segments[number].token_ids[offset] for number, offset in text]
            is_exact = _is_exact(segments, text, counts)
            found.append(_row(segments, segments[chain[0]].thread, ids, start, counts, is_exact))
    return sorted(found, key=lambda row: row.thread)


def final_row(segments: Sequence[Segment], voted: int | None) -> Row:
    """Of ``rows`` the one that ends the answer: the request's last, or the last of the vote's winner.

    If that one sampled nothing, the last of all. Raises ValueError if nothing was sampled, or if the segments
    have no logprobs.
    """
    found = rows(segments)
    if not found:
        raise ValueError("tree: expected a sampled token, found none: ask again, or leave this answer out")
    thread = ROOT if voted is None else voted
    own = [row for row in found if row.thread == thread]
    return (own or found)[-1]


def transcript(segments: Sequence[Segment], answer_ids: Sequence[int], voted: int | None) -> Row:
    """The prompt and the answer; what the request and its threads are seen to have sampled counts.

    A thread was sampled without sight of the others, and stands after them here: with threads, the row is not
    exact. Raises ValueError if the segments have no logprobs.
    """
    thread = ROOT if voted is None else voted
    last = max(number for number, segment in enumerate(segments) if segment.thread == thread)
    read = places(segments, last, len(segments[last].token_ids))
    start = segments[0].num_injected
    ids = [*segments[0].token_ids[:start], *answer_ids]
    counts = quoted(segments, ids, read)
    is_exact = len(read) >= len(ids) and _is_exact(segments, read[: len(ids)], counts)
    return _row(segments, thread, ids, start, counts, is_exact)


def _chains(segments: Sequence[Segment]) -> list[list[int]]:
    """The segments of each thread, those in one list that each go on from all of the one before."""
    chains: dict[int, list[int]] = {}  # by the last segment
    for number, segment in enumerate(segments):
        before = segment.parent
        is_next = (
            before in chains
            and segments[before].thread == segment.thread
            and segment.fork_offset == len(segments[before].token_ids)
        )
        chains[number] = [*(chains.pop(before) if is_next and before is not None else []), number]
    return list(chains.values())


def _row(
    segments: Sequence[Segment],
    thread: int,
    ids: list[int],
    start: int,
    counts: list[Place | None],
    is_exact: bool,
) -> Row:
    """The row of ``ids``, whose completion begins at ``start``; ``counts``: where each was sampled."""
    counts = counts[start:]
    logprobs = [0.0 if place is None else _logprob(segments, place) for place in counts]
    return Row(thread, ids[:start], ids[start:], [int(p is not None) for p in counts], logprobs, is_exact)


def _is_exact(segments: Sequence[Segment], text: list[Place], counts: list[Place | None]) -> bool:
    """Whether tokens that count stand where one model sampled them, after what they saw, at its positions."""
    if any(place is not None and place != here for place, here in zip(counts, text, strict=True)):
        return False
    counted = [segments[place[0]] for place in counts if place is not None]
    if len({segment.weight_version for segment in counted}) > 1 or any(s.has_old_kv for s in counted):
        return False
    in_place = all(segments[n].position + offset == index for index, (n, offset) in enumerate(text))
    return in_place and not any(segments[n].joined for n, _ in text)


def _is_sampled(segments: Sequence[Segment], place: Place) -> bool:
    number, offset = place
    return offset >= segments[number].num_injected


def _logprob(segments: Sequence[Segment], place: Place) -> float:
    number, offset = place
    logprobs = segments[number].logprobs
    logprob = None if logprobs is None else logprobs[offset]
    if logprob is None:
        raise ValueError(
            f"segment {number}: expected logprobs of its sampled tokens, found none: ask for them"
        )
    return logprob
