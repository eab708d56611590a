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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from forkjoin.answer import ROOT, Answer, ForkJoinUsage, KeptUsage, Thread, ThreadUsage, Usage, Vote
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
    SegmentEnded,
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
from forkjoin.tree.layout import Layout
from forkjoin.tree.rows import Row
from forkjoin.tree.segment import Joined as JoinedThread
from forkjoin.tree.segment import Segment
from forkjoin.tree.tree import Tree, read_jsonl, write_parquet

if TYPE_CHECKING:
    LLM: Any

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
    "JoinedThread",
    "KeptUsage",
    "Layout",
    "NotConnected",
    "Overloaded",
    "RequestRefused",
    "Retries",
    "Row",
    "Segment",
    "SegmentEnded",
    "ServerFailed",
    "StartedThread",
    "StreamBroken",
    "Thread",
    "ThreadDelta",
    "ThreadEnded",
    "ThreadUsage",
    "ThreadWaits",
    "Tree",
    "Unreadable",
    "Usage",
    "Vote",
    "WrongKey",
    "async_events_of",
    "events_of",
    "read_jsonl",
    "write_parquet",
]


def __getattr__(name: str) -> Any:
    """``LLM`` is there where the server is. It is imported when it is asked for by name, and vLLM with it."""
    if name != "LLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module("forkjoin_server.vllm_seam.offline.llm").LLM
    except ModuleNotFoundError as error:
        raise ImportError(
            f"forkjoin.LLM: expected vllm-forkjoin and vLLM in this Python, found no {error.name}: "
            "pip install 'vllm-forkjoin[cuda]', or [cpu]. The client alone has everything else"
        ) from error
