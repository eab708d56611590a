"""Who is being served, in the front end: set at the door, read where the request goes to the engine.

Both run in one process, and in one context: vLLM's handlers, and the tasks that they start, inherit it.
"""

from __future__ import annotations

import hashlib
from contextvars import ContextVar

from forkjoin_scheduler.errors import BadRequestOptions, Overloaded
from forkjoin_scheduler.policy.backlog import Backlog, Visit

#: The visit that is being served; none where vLLM is used as a library.
VISIT: ContextVar[Visit | None] = ContextVar("visit", default=None)

#: Of this process.
BACKLOG = Backlog()

#: Under which the engine core finds whose a request is, in ``SamplingParams.extra_args``.
TENANT = "forkjoin_tenant"


def refuse(error: BadRequestOptions | Overloaded) -> None:
    """Answer the request that is being served with ``error``, unless the engine has some of it already.

    For what is found wrong so late that vLLM has begun a stream.
    """
    visit = VISIT.get()
    if visit is not None and not visit.is_in and visit.refused is None:
        visit.refused = error
        visit.decided()


def salted(cache: str, given: str | None) -> str:
    """The ``cache_salt`` of a tenant whose KV cache is its own: whatever it gives, never another's.

    >>> salted("alice", "x") == salted("bob", "x")
    False
    """
    return hashlib.sha256(f"{len(cache)}:{cache}{given or ''}".encode("utf-8", "surrogatepass")).hexdigest()
