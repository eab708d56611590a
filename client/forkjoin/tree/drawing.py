"""A tree as lines of text: a thread's segments in order, the threads that each called for beneath it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from forkjoin.tree.segment import ROOT, Segment

#: Characters of a text that are shown at each of its ends.
_SHOWN = 24


def draw(segments: Sequence[Segment], decode: Callable[[list[int]], str] | None = None) -> str:
    """The lines, of which each is of one segment."""
    return "\n".join(_lines(segments, ROOT, "", decode))


def _lines(
    segments: Sequence[Segment], thread: int, indent: str, decode: Callable[[list[int]], str] | None
) -> Iterator[str]:
    for number, segment in enumerate(segments):
        if segment.thread != thread:
            continue
        yield f"{indent}{_line(number, segment, decode)}"
        for other in segments:
            if other.forked_by == number:
                yield from _lines(segments, other.thread, f"{indent}    ", decode)


def _line(number: int, segment: Segment, decode: Callable[[list[int]], str] | None) -> str:
    name = "request" if segment.thread == ROOT else f"thread {segment.thread}"
    if segment.title:
        name += f" {segment.title!r}"
    sampled = segment.token_ids[segment.num_injected :]
    line = f"{number}: {name} at {segment.position}: {segment.num_injected} given, {len(sampled)} sampled"
    if segment.joined:
        line += f", joins {', '.join(str(joined.segment) for joined in segment.joined)}"
    if segment.has_old_kv:
        line += ", old KV"
    if segment.finish_reason is not None:
        line += f", {segment.finish_reason}"
    if decode is not None and sampled:
        line += f": {_excerpt(decode(sampled))}"
    return line


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 2 * _SHOWN + 1 else f"{text[:_SHOWN]}…{text[-_SHOWN:]}")
