"""The errors of this package.

ForkJoinError
├── DialectError         a dialect file is wrong, or does not fit the tokenizer   (operator, at start)
├── UsageError           the command line asks for what can't be                  (operator, at start)
├── UnsupportedEngine    an engine option can't be combined with fork/join        (operator, at start)
├── BadRequestOptions    the request's ``forkjoin`` field is wrong                (client, 400)
├── IllegalTransition    our own bookkeeping was asked for the impossible         (a bug: ends its request)
└── TornState            an error left the scheduler's accounts in disorder       (a bug: ends the engine)
"""

from __future__ import annotations


class ForkJoinError(Exception):
    """Base of all errors of this package."""


class DialectError(ForkJoinError):
    """A dialect is malformed, unknown, or does not fit the model's tokenizer."""


class UsageError(ForkJoinError):
    """A flag of the command line is wrong, or clashes with another."""


class UnsupportedEngine(ForkJoinError):
    """An engine option can't be combined with fork/join; the message says which and why."""


class BadRequestOptions(ForkJoinError, ValueError):
    """The ``forkjoin`` field of a request is wrong; the message says what was expected."""


class IllegalTransition(ForkJoinError):
    """A family was asked for a step that its state does not allow; nothing was changed."""


class TornState(ForkJoinError):
    """Behind an error the scheduler's accounts do not agree: it can't be trusted with the other requests."""
