"""What happens in a streamed answer, one event each. They can't be changed, and dump to JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from forkjoin.answer import Answer


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)


class StartedThread(_Event):
    """A thread as its fork announces it."""

    index: int
    id: str
    parent_id: str
    title: str


class Forked(_Event):
    """A parent forked: all ``threads`` of the fork start. They run side by side."""

    type: Literal["forked"] = "forked"
    #: A thread, or ``ROOT``.
    parent_id: str
    threads: tuple[StartedThread, ...]


class ThreadDelta(_Event):
    """A thread wrote ``text``."""

    type: Literal["thread_delta"] = "thread_delta"
    index: int
    text: str


class ThreadEnded(_Event):
    """A thread ended: by itself (``stop``), or as ``finish_reason`` says."""

    type: Literal["thread_ended"] = "thread_ended"
    index: int
    finish_reason: str
    completion_tokens: int


class Joined(_Event):
    """All threads of a fork have ended, and ``parent_id`` has what they wrote.

    There is none where the answer ended instead: a limit or a stop string cut its last threads.
    """

    type: Literal["joined"] = "joined"
    parent_id: str
    #: The indices of the threads.
    threads: tuple[int, ...]


class AnswerDelta(_Event):
    """The transcript grew by ``text``, threads included, in outline order."""

    type: Literal["answer_delta"] = "answer_delta"
    text: str = ""
    reasoning: str = ""
    #: In the shape of OpenAI's ``delta.tool_calls``.
    tool_calls: tuple[dict[str, Any], ...] = ()


class Finished(_Event):
    """The answer is complete. The last event of a stream."""

    type: Literal["finished"] = "finished"
    answer: Answer


Event = Forked | ThreadDelta | ThreadEnded | Joined | AnswerDelta | Finished
