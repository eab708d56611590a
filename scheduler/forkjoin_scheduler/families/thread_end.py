"""Why threads end."""

from __future__ import annotations

from enum import StrEnum


class ThreadEnd(StrEnum):
    """Why a thread ended."""

    #: It wrote its end tag.
    STOP = "stop"
    #: It wrote the end-of-sequence token instead.
    EOS = "eos"
    #: It ran into a limit on tokens or the context length.
    LENGTH = "length"
    #: It called for a fork that was refused, and its dialect ends it there.
    REFUSED = "refused"
    #: It wrote one of the request's own stop tokens: the answer ends here.
    REQUEST_STOP = "request_stop"
    #: It could change nothing any more: the vote was decided, or the dialect waits for the first to end only.
    CUT = "cut"
    #: The same, before it wrote anything; or it waited for others when its request ended.
    NOT_STARTED = "not_started"
    #: A pruning policy stopped it, as its request had asked for.
    PRUNED = "pruned"
    #: Its request ended, or a thread before it ended the answer.
    CANCELLED = "cancelled"
    #: The client cancelled it, or a thread above it; the answer goes on without.
    CLIENT_CANCELLED = "client_cancelled"
