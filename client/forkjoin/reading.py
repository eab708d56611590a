"""Chunks of a streamed chat completion in, events out. No I/O.

Checked rules of the wire: ``index`` is dense over the answer; a thread is announced, once and by one that
has started, before it writes, and writes nothing after its end. A chunk that breaks one raises StreamBroken.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from forkjoin.answer import ROOT, Answer, Thread, ThreadUsage, Usage
from forkjoin.errors import StreamBroken
from forkjoin.events import (
    AnswerDelta,
    Event,
    Finished,
    Forked,
    Joined,
    SegmentEnded,
    StartedThread,
    ThreadDelta,
    ThreadEnded,
    ThreadWaits,
)
from forkjoin.parsing import fault
from forkjoin.tree.segment import Segment
from forkjoin.tree.tree import Tree

#: What an entry that announces a thread may hold, too.
_COME_LATER = {"content", "finish_reason", "usage", "waits_for"}
#: What the server says of a thread that no longer waits.
_NOTHING = "nothing"


def _is_call(entry: dict[str, Any]) -> dict[str, Any]:
    function = entry.get("function") or {}
    is_call = isinstance(entry.get("index", 0), int) and isinstance(function, dict)
    if not (is_call and isinstance(function.get("arguments") or "", str)):
        raise ValueError("expected a part of a tool call: an index, and a function with arguments")
    return entry


class _Wait(BaseModel):
    type: str


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow")

    index: int
    id: str | None = None
    parent_id: str = ROOT
    title: str = ""
    content: str = ""
    finish_reason: str | None = None
    usage: ThreadUsage | None = None
    waits_for: _Wait | None = None


class _Delta(BaseModel):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Annotated[dict[str, Any], AfterValidator(_is_call)]] | None = None
    threads: list[_Entry] | None = None


class _Tree(BaseModel):
    #: None in the place of a segment that was sent before.
    segments: list[Segment | None]
    answer_ids: list[int]
    voted: int | None


class _Numbered(BaseModel):
    number: int
    segment: Segment


class _Choice(BaseModel):
    index: int = 0
    delta: _Delta = Field(default_factory=_Delta)
    finish_reason: str | None = None
    segments: list[_Numbered] = Field(default_factory=list)
    tree: _Tree | None = None


class _Chunk(BaseModel):
    id: str = ""
    model: str = ""
    choices: list[_Choice] = Field(default_factory=list)
    usage: Usage | None = None
    error: Any = None


class AnswerReader:
    """Rebuilds one answer from its chunks; ``answer`` is its current state."""

    def __init__(self) -> None:
        self.answer = Answer()
        #: Who may fork.
        self._ids = {ROOT}
        #: The open threads of each fork that has not joined, by the fork's first thread.
        self._open: dict[int, set[int]] = {}
        self._fork_of: dict[int, Forked] = {}
        #: A join that the next chunk confirms or denies.
        self._unsure: list[Joined] = []
        #: Of the tree, by their numbers, as far as they have ended.
        self._segments: dict[int, Segment] = {}

    def feed(self, chunk: object) -> list[Event]:
        """The events that ``chunk`` adds: JSON, or an object of the OpenAI SDK's.

        Raises StreamBroken for an error that the server reports, and for what is no chunk of an answer.
        """
        read = _read(chunk)
        self.answer.id = self.answer.id or read.id
        self.answer.model = self.answer.model or read.model
        self.answer.usage = read.usage or self.answer.usage
        return [event for choice in read.choices for event in self._choice(choice)]

    def end(self) -> Finished:
        """The last event. Raises StreamBroken if the answer is not complete."""
        if self.answer.finish_reason is None:
            raise StreamBroken(
                "expected a finish_reason, got the end of the stream: the answer is cut; ask again"
            )
        return Finished(answer=self.answer)

    def _choice(self, choice: _Choice) -> Iterator[Event]:
        if choice.index != 0:
            raise StreamBroken(f"expected one choice, got choice {choice.index}: ask with n = 1")
        if not choice.segments:  # such a chunk may stand before the last
            if choice.finish_reason is None:
                yield from self._unsure
            self._unsure = []
        yield from self._threads(choice.delta.threads or [])
        yield from self._transcript(choice.delta)
        yield from map(self._segment, choice.segments)
        self.answer.finish_reason = choice.finish_reason or self.answer.finish_reason
        if choice.tree is not None:
            self.answer.tree = self._whole(choice.tree)

    def _segment(self, ended: _Numbered) -> SegmentEnded:
        self._segments[ended.number] = ended.segment
        return SegmentEnded(number=ended.number, segment=ended.segment)

    def _whole(self, tree: _Tree) -> Tree:
        """``tree`` with the segments that were sent before."""
        segments = [self._segments.get(n) if s is None else s for n, s in enumerate(tree.segments)]
        if None in segments:
            raise StreamBroken(f"expected segment {segments.index(None)} of the tree: an event is missing")
        return Tree([s for s in segments if s is not None], tree.answer_ids, tree.voted)

    def _transcript(self, delta: _Delta) -> Iterator[Event]:
        text, reasoning = delta.content or "", delta.reasoning or delta.reasoning_content or ""
        calls = delta.tool_calls or []
        self.answer.content += text
        self.answer.reasoning += reasoning
        for call in calls:
            _add_call(self.answer.tool_calls, call)
        if text or reasoning or calls:
            yield AnswerDelta(text=text, reasoning=reasoning, tool_calls=tuple(calls))

    def _threads(self, entries: list[_Entry]) -> Iterator[Event]:
        for announced, group in groupby(entries, key=lambda entry: entry.id is not None and entry.parent_id):
            if announced:
                yield self._fork(announced, list(group))
        for entry in entries:
            thread = self._running(entry.index)
            if entry.content:
                thread.content += entry.content
                yield ThreadDelta(index=entry.index, text=entry.content)
            if entry.waits_for is not None:
                wait = entry.waits_for.type
                yield ThreadWaits(index=entry.index, waits_for=None if wait == _NOTHING else wait)
            # Not by setattr: what a later server adds may have any name, also that of a method.
            if thread.model_extra is not None and entry.model_extra is not None:
                thread.model_extra.update(entry.model_extra)
            if entry.finish_reason is not None:
                yield from self._end(thread, entry)

    def _fork(self, parent_id: str, entries: list[_Entry]) -> Forked:
        for entry in entries:
            num = len(self.answer.threads)
            if entry.index != num:
                raise StreamBroken(
                    f"expected thread {num} to start next, got {entry.index}: a chunk is missing"
                )
            if entry.id is None or entry.id in self._ids or parent_id not in self._ids:
                raise StreamBroken(
                    f"expected a new thread of one that has started, got {entry.id!r} of {parent_id!r}"
                )
            self._ids.add(entry.id)
            given = {name: value for name, value in entry if name in entry.model_fields_set - _COME_LATER}
            self.answer.threads.append(Thread.model_validate(given | {"content": ""}))
        started = tuple(
            StartedThread(index=e.index, id=e.id or "", parent_id=parent_id, title=e.title) for e in entries
        )
        forked = Forked(parent_id=parent_id, threads=started)
        self._fork_of |= dict.fromkeys((e.index for e in entries), forked)
        self._open[entries[0].index] = {e.index for e in entries}
        return forked

    def _running(self, index: int) -> Thread:
        if not 0 <= index < len(self.answer.threads):
            raise StreamBroken(f"expected thread {index} to start before it writes: a chunk is missing")
        thread = self.answer.threads[index]
        if thread.finish_reason is not None:
            raise StreamBroken(f"expected nothing of thread {index} after its end, got more")
        return thread

    def _end(self, thread: Thread, entry: _Entry) -> Iterator[Event]:
        thread.finish_reason, thread.usage = entry.finish_reason, entry.usage
        yield ThreadEnded(
            index=thread.index,
            finish_reason=entry.finish_reason or "",
            completion_tokens=entry.usage.completion_tokens if entry.usage else 0,
        )
        forked = self._fork_of[thread.index]
        first = forked.threads[0].index
        self._open[first].discard(thread.index)
        if self._open[first]:
            return
        joined = Joined(parent_id=forked.parent_id, threads=tuple(t.index for t in forked.threads))
        if entry.finish_reason == "length":
            self._unsure.append(joined)
        else:
            yield joined


def _read(chunk: object) -> _Chunk:
    given = chunk.model_dump(exclude_unset=True) if isinstance(chunk, BaseModel) else chunk
    try:
        read = _Chunk.model_validate(given)
    except ValidationError as error:
        raise StreamBroken(f"expected a chunk of a chat completion, got one where {fault(error)}") from error
    if read.error is not None:
        said = read.error.get("message") if isinstance(read.error, dict) else read.error
        raise StreamBroken(f"expected more of the answer, got an error of the server's: {said}")
    return read


def _add_call(calls: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """Put a tool call together, as OpenAI's clients do: by ``index``, its arguments appended."""
    index = entry.get("index", len(calls))
    if index == len(calls):
        calls.append({"function": {"arguments": ""}})
    if not 0 <= index < len(calls):
        raise StreamBroken(f"expected tool call {len(calls)} to start next, got {index}: a chunk is missing")
    call, function = calls[index], entry.get("function") or {}
    arguments = call["function"]["arguments"] + (function.get("arguments") or "")
    call |= {
        key: value for key, value in entry.items() if key not in ("function", "index") and value is not None
    }
    call["function"] |= {key: value for key, value in function.items() if value is not None}
    call["function"]["arguments"] = arguments
