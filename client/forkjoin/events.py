"""What happens in a streamed answer, one event each. They can't be changed, and dump to JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from forkjoin.answer import Answer
from forkjoin.tree.segment import Segment


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)


class StartedThread(_Event):
    """A thread as its fork announces it."""

    index: int = Field(description="Number of the thread in the answer, in the order of starting.")
    id: str = Field(description="Id of the thread.")
    parent_id: str = Field(description="Id of the thread that forked it, or `root`.")
    title: str = Field(description="Title from the outline or the branch.")


class Forked(_Event):
    """A parent forked: all ``threads`` of the fork start. They run side by side."""

    type: Literal["forked"] = "forked"
    parent_id: str = Field(description="Id of the thread that forked, or `root`.")
    threads: tuple[StartedThread, ...] = Field(
        description="The threads: `index`, `id`, `parent_id` and `title` of each."
    )


class ThreadDelta(_Event):
    """A thread wrote ``text``."""

    type: Literal["thread_delta"] = "thread_delta"
    index: int = Field(description="Number of the thread.")
    text: str = Field(description="What it wrote since its last event.")


class ThreadWaits(_Event):
    """A thread ``waits_for`` a ``wave``, ``dependencies``, a ``turn``, ``room`` or a ``grammar``.

    None: it runs again. Of a thread that runs from its start there is no such event.
    """

    type: Literal["thread_waits"] = "thread_waits"
    index: int
    #: A later server may know other reasons.
    waits_for: str | None


class ThreadEnded(_Event):
    """A thread ended: by itself (``stop``), or as ``finish_reason`` says."""

    type: Literal["thread_ended"] = "thread_ended"
    index: int = Field(description="Number of the thread.")
    finish_reason: str = Field(description="Why it ended, as in its entry of `threads`.")
    completion_tokens: int = Field(description="Tokens that it generated.")


class Joined(_Event):
    """All threads of a fork have ended, and ``parent_id`` has what they wrote.

    There is none where the answer ended instead: a limit or a stop string cut its last threads.
    """

    type: Literal["joined"] = "joined"
    parent_id: str = Field(description="Id of the thread that goes on, or `root`.")
    threads: tuple[int, ...] = Field(description="Numbers of the threads.")


class SegmentEnded(_Event):
    """A segment of the answer's tree ended (``stream_segments``): nothing changes it any more."""

    type: Literal["segment_ended"] = "segment_ended"
    number: int = Field(description="Its number in the tree.")
    segment: Segment = Field(description="The segment, as in the tree.")


class AnswerDelta(_Event):
    """The transcript grew by ``text``, threads included, in outline order."""

    type: Literal["answer_delta"] = "answer_delta"
    text: str = Field(default="", description="Text that the transcript grew by.")
    reasoning: str = Field(default="", description="Reasoning that it grew by, with a reasoning parser.")
    tool_calls: tuple[dict[str, Any], ...] = Field(
        default=(), description="Pieces of tool calls, in the shape of OpenAI's `delta.tool_calls`."
    )


class Finished(_Event):
    """The answer is complete. The last event of a stream."""

    type: Literal["finished"] = "finished"
    answer: Answer = Field(description="The whole answer.")


Event = Forked | ThreadDelta | ThreadWaits | ThreadEnded | Joined | SegmentEnded | AnswerDelta | Finished
