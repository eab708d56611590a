"""The errors of this package.

ForkJoinError
├── DialectError         a dialect file is wrong, or does not fit the tokenizer   (operator, at start)
├── UsageError           the command line asks for what can't be                  (operator, at start)
├── UnsupportedEngine    an engine option can't be combined with fork/join        (operator, at start)
├── BadRequestOptions    the request's ``forkjoin`` field is wrong                (client, 400)
├── Overloaded           more waits, or is a key's, than may                      (client, 429; anyone, 503)
├── NoGrammar            a thread's grammar does not compile, or has no next token (ends its request)
├── IllegalTransition    our own bookkeeping was asked for the impossible         (a bug: ends its request)
└── TornState            an error left the scheduler's accounts in disorder       (a bug: ends the engine)
"""

from __future__ import annotations

from typing import Literal

#: The limits that a request is refused at: of all that waits, of what is an API key's.
Limit = Literal[
    "queued_families", "queued_threads", "queued_tokens", "queued_bodies", "queued_grammars",
    "key_families", "key_tokens",
]  # fmt: skip

#: The places in fork/join code where an error of ours is contained: in an engine core.
EnginePlace = Literal[
    "add", "admit", "advance", "ahead", "ask", "cost", "draft", "evict", "finish", "fork", "group", "hash",
    "hear", "hold", "keep", "learn", "load", "overview", "pace", "preempt", "prune", "restore", "start",
    "stitch", "swap", "take", "waits", "weights",
]  # fmt: skip

#: The same in the front end.
FrontEndPlace = Literal["backlog", "event_log", "events", "feed", "observer", "text", "tracing", "tree"]

#: The settings that bring a policy of the user's own. Its errors are counted by these, and not by places.
OwnPolicy = Literal["admission_policy", "thread_policy", "prune_policy", "eviction_policy"]


class ForkJoinError(Exception):
    """Base of all errors of this package."""


class DialectError(ForkJoinError):
    """A dialect is malformed, unknown, or does not fit the model's tokenizer."""


class UsageError(ForkJoinError):
    """A flag of the command line is wrong, or clashes with another."""


class UnsupportedEngine(ForkJoinError):
    """An engine option can't be combined with fork/join; the message says which and why."""


class BadRequestOptions(ForkJoinError, ValueError):
    """A field of a request is wrong; the message says what was expected, ``field`` which one it is."""

    def __init__(self, message: str, *, field: str = "forkjoin") -> None:
        super().__init__(message)
        self.field = field


class Overloaded(ForkJoinError):
    """A request may not wait; the client may ask again in ``retry_after_s`` seconds.

    ``reason`` names the limit.
    ``status`` is 503 where another server may have room, 429 where it is the client's own limit, and 400
    where no waiting helps: one request is more than the key may ever have at once, or than may wait.
    """

    def __init__(self, message: str, *, reason: Limit, status: int, retry_after_s: int) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s


class IllegalTransition(ForkJoinError):
    """A family was asked for a step that its state does not allow; nothing was changed."""


class NoGrammar(ForkJoinError):
    """A thread's grammar can't be compiled, or allows no next token; vLLM's log says which.

    It is its client's, and no error of ours: its family ends as a plain request does.
    """


class TornState(ForkJoinError):
    """After an error the scheduler's accounts do not agree: it can't be trusted with the other requests."""
