"""The log of what families do: a line for each fork, join and end, where somebody wants it.

Beneath vLLM's logger, whose handler and format it so has. ``request_id`` and ``thread`` (with which
the fields of an event go) are in the record's ``forkjoin``, for who logs JSON.
"""

from __future__ import annotations

import logging

from msgspec import to_builtins

from forkjoin_scheduler.publish.events import ROOT, Event

#: Has no level of its own until somebody asks: --enable-log-requests (``switch_on``), or a logging config of
#: the user's. (One set at import would be lost when vLLM configures its loggers behind that.)
LOG = logging.getLogger("vllm.forkjoin.events")

#: What is logged of a family, and in which words.
_MESSAGES = {
    "forked": "%(branch)s forked into %(num_threads)s threads",
    "thread_ended": "%(branch)s ended: %(reason)s, %(num_tokens)s tokens",
    "threads_started": "%(branch)s started %(num_threads)s more threads",
    "joined": "%(branch)s joined its threads, %(prefilled_tokens)s tokens prefilled",
    "refused": "a fork of %(branch)s was refused: %(reason)s, %(policy)s",
    "tolerated": "%(branch)s wrote what is malformed, %(num)s times: %(reason)s, %(policy)s",
    "limited": "%(branch)s ran into a limit: %(reason)s, %(policy)s",
    "voted": "%(branch)s has most votes: %(result)s",
    "kept": "%(branch)s is kept for %(seconds)s s: %(num_tokens)s tokens, refused: %(refusal)s",
    "continued": "%(branch)s goes on from a kept answer: %(state)s",
    "internal_error": "%(branch)s met an error in fork/join code: %(where)s",
    "family_ended": "%(branch)s ended: %(num_threads)s threads, %(total_tokens)s tokens, "
    "%(critical_path_tokens)s on the critical path",
}


def is_wanted() -> bool:
    """Whether somebody has asked for these lines: that vLLM logs at level INFO is not enough."""
    return LOG.level != logging.NOTSET and LOG.isEnabledFor(logging.INFO)


def switch_on() -> None:
    """Log from here on, at level INFO."""
    LOG.setLevel(logging.INFO)


def log(request_id: str, event: Event) -> None:
    """Log ``event`` of the family of ``request_id``, if it is of a kind that is logged.

    An error that was nobody's ("") is in the log already.
    """
    message = _MESSAGES.get(event.kind) if request_id else None
    if message is None:
        return
    fields = to_builtins(event)
    index = fields.pop("index", fields.pop("parent_index", ROOT))
    fields.pop("family", None)
    if "threads" in fields:
        fields["num_threads"] = len(fields["threads"])
    fields |= {"event": fields.pop("type"), "request_id": request_id}
    fields |= {} if index == ROOT else {"thread": index}
    branch = "the request" if index == ROOT else f"thread {index}"
    LOG.info(f"%(request_id)s: {message}", fields | {"branch": branch}, extra={"forkjoin": fields})
