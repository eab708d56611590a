"""Client of vllm-forkjoin: a stream's threads as typed events, and as a tree.

Example::

    with Client("http://localhost:8000") as client, client.stream("a=482*731, b=64*28") as events:
        for event in events:
            match event:
                case Forked(threads=threads):
                    print("forks into", [thread.title for thread in threads])
                case Joined():
                    print("joins")
    print(events.answer.content)
"""

from forkjoin.answer import ROOT, Answer, ForkJoinUsage, Thread, ThreadUsage, Usage, Vote
from forkjoin.client import AsyncClient, Client
from forkjoin.errors import (
    BadRequest,
    Conflict,
    ForkJoinError,
    NotConnected,
    Overloaded,
    RequestRefused,
    ServerFailed,
    StreamBroken,
    Unreadable,
    WrongKey,
)
from forkjoin.events import (
    AnswerDelta,
    Event,
    Finished,
    Forked,
    Joined,
    StartedThread,
    ThreadDelta,
    ThreadEnded,
    ThreadWaits,
)
from forkjoin.openai import async_events_of, events_of
from forkjoin.options import Branch, ForkJoin
from forkjoin.reading import AnswerReader
from forkjoin.retrying import Retries
from forkjoin.streams import AsyncEventStream, EventStream

__all__ = [
    "ROOT",
    "Answer",
    "AnswerDelta",
    "AnswerReader",
    "AsyncClient",
    "AsyncEventStream",
    "BadRequest",
    "Branch",
    "Client",
    "Conflict",
    "Event",
    "EventStream",
    "Finished",
    "ForkJoin",
    "ForkJoinError",
    "ForkJoinUsage",
    "Forked",
    "Joined",
    "NotConnected",
    "Overloaded",
    "RequestRefused",
    "Retries",
    "ServerFailed",
    "StartedThread",
    "StreamBroken",
    "Thread",
    "ThreadDelta",
    "ThreadEnded",
    "ThreadUsage",
    "ThreadWaits",
    "Unreadable",
    "Usage",
    "Vote",
    "WrongKey",
    "async_events_of",
    "events_of",
]
