"""An answer as lanes over time, one for the answer itself and one for each thread. No I/O, and no clock.

Times are seconds since the answer was asked for, or decoding steps (``step_lanes``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import BaseModel, Field

from forkjoin.answer import ROOT, Count
from forkjoin.events import (
    AnswerDelta,
    Event,
    Finished,
    Forked,
    Joined,
    ThreadDelta,
    ThreadEnded,
    ThreadWaits,
)

#: The ``index`` of the answer's own lane.
ANSWER = -1

#: Finite, and of a size that can be drawn.
Time = Annotated[float, Field(ge=0, le=1e12)]


class Pause(BaseModel):
    """A time in which a lane does not write."""

    start: Time
    #: None while it lasts.
    end: Time | None = None


class Split(Pause):
    """From a fork to its join: where ``threads`` run side by side."""

    threads: list[int]


class Wait(Pause):
    """Where a thread does not run, or the answer has not begun, and what it waits for."""

    waits_for: str


class Lane(BaseModel):
    """What one thread did, or the answer itself."""

    index: int
    title: str
    #: How many threads it is below the answer.
    depth: int
    start: Time
    #: None while it runs.
    end: Time | None = None
    splits: list[Split] = Field(default_factory=list)
    waits: list[Wait] = Field(default_factory=list)
    text: str = ""
    #: Exact once it has ended, else what has come so far: a delta has one token, as a rule.
    num_tokens: Count = 0
    finish_reason: str | None = None

    @property
    def is_writing(self) -> bool:
        """Whether it runs, and not in threads of its own."""
        pauses: list[Pause] = [*self.splits, *self.waits]
        return self.end is None and all(pause.end is not None for pause in pauses)

    @property
    def waits_for(self) -> str | None:
        """What it waits for at the moment."""
        return next((wait.waits_for for wait in self.waits if wait.end is None), None)


class Lanes:
    """The lanes of an answer, brought up to date by its events."""

    def __init__(self, start: float = 0.0) -> None:
        self._lanes = {ANSWER: Lane(index=ANSWER, title="answer", depth=0, start=start)}
        self._by_id = {ROOT: ANSWER}

    @classmethod
    def of(cls, lanes: Iterable[Lane]) -> Lanes:
        """Lanes that are complete. Raises ValueError if they are no tree, with the answer as its root."""
        whole, given = cls(), list(lanes)
        whole._lanes = {lane.index: lane for lane in given}
        named = [(ANSWER, 0)] + [
            (thread, lane.depth + 1) for lane in given for split in lane.splits for thread in split.threads
        ]
        # By its depth no thread stands below itself.
        is_tree = sorted(named) == sorted((lane.index, lane.depth) for lane in given)
        if not is_tree or len(whole) != len(given):
            raise ValueError(
                "lanes: expected those of the answer and of each thread that it or a thread forked, once, "
                f"one deeper than who forked it; got {sorted(lane.index for lane in given)}"
            )
        return whole

    @property
    def answer(self) -> Lane:
        """The answer's own lane."""
        return self._lanes[ANSWER]

    def __getitem__(self, index: int) -> Lane:
        return self._lanes[index]

    def __len__(self) -> int:
        return len(self._lanes)

    def in_order(self) -> Iterator[Lane]:
        """Each lane, parents before their threads."""
        left = [ANSWER]
        while left:
            lane = self._lanes[left.pop()]
            yield lane
            left += reversed([thread for split in lane.splits for thread in split.threads])

    def wait(self, waits_for: str) -> None:
        """The answer has not begun: from its start on it ``waits_for`` this, as far as is known now."""
        self.answer.waits = [Wait(start=self.answer.start, waits_for=waits_for)]

    def take(self, event: Event, at: float) -> None:
        """Bring the lanes up to ``event``, which came ``at`` a time."""
        _end(self.answer.waits, at)
        match event:
            case Forked(parent_id=parent_id, threads=threads):
                parent = self._lanes[self._by_id[parent_id]]
                parent.splits.append(Split(start=at, threads=[t.index for t in threads]))
                for t in threads:
                    self._by_id[t.id] = t.index
                    self._lanes[t.index] = Lane(
                        index=t.index, title=t.title, depth=parent.depth + 1, start=at
                    )
            case ThreadDelta(index=index, text=text):
                self._lanes[index].text += text
                self._lanes[index].num_tokens += 1
            case ThreadWaits(index=index, waits_for=wait):
                waits = self._lanes[index].waits
                _end(waits, at)
                if wait is not None:
                    waits.append(Wait(start=at, waits_for=wait))
            case ThreadEnded(index=index, finish_reason=reason, completion_tokens=num):
                lane = self._lanes[index]
                _end(lane.waits, at)
                lane.end, lane.finish_reason, lane.num_tokens = at, reason, num
            case Joined(parent_id=parent_id, threads=joined):
                for split in self._lanes[self._by_id[parent_id]].splits:
                    if split.threads == list(joined):
                        split.end = at
            case AnswerDelta(text=text, reasoning=reasoning):
                self.answer.text += reasoning + text
            case Finished(answer=answer):
                self._finish(at)
                self.answer.finish_reason = answer.finish_reason
                if answer.usage is not None:
                    in_threads = sum(lane.num_tokens for lane in self._lanes.values() if lane.index != ANSWER)
                    self.answer.num_tokens = max(0, answer.usage.completion_tokens - in_threads)

    def stop(self, at: float) -> None:
        """The answer was cancelled, or failed."""
        for lane in self._lanes.values():
            lane.finish_reason = lane.finish_reason or "cancelled"
        self._finish(at)

    def _finish(self, at: float) -> None:
        for lane in self._lanes.values():
            lane.end = at if lane.end is None else lane.end
            _end(lane.splits, at)
            _end(lane.waits, at)


def _end(pauses: Iterable[Pause], at: float) -> None:
    """End those that last."""
    for pause in pauses:
        pause.end = at if pause.end is None else pause.end
