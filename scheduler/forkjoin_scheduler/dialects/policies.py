"""The named outcome of each limit and of each malformed output."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator

from forkjoin_scheduler.dialects.strict import Strict


class Policy(StrEnum):
    """What happens at a limit, or on malformed output."""

    #: No fork: the model goes on decoding after its own text, in which the trigger is ordinary.
    SEQUENTIAL = "sequential"
    #: The repeated outline starts no thread; the others fork.
    DROP = "drop"
    #: The thread gets its end tag and the family joins and goes on.
    CLOSE_THREAD = "close_thread"
    #: What is open is closed (thread, block), and the request ends after it.
    END_REQUEST = "end_request"


def _one_of(*allowed: Policy) -> AfterValidator:
    def check(value: Policy) -> Policy:
        if value not in allowed:
            raise ValueError(f"expected {' or '.join(p.value for p in allowed)}, got {value.value}")
        return value

    return AfterValidator(check)


RefusedFork = Annotated[Policy, _one_of(Policy.SEQUENTIAL, Policy.END_REQUEST)]
UnclosedThread = Annotated[Policy, _one_of(Policy.CLOSE_THREAD, Policy.END_REQUEST)]


class Policies(Strict):
    """The named outcome of each limit and of each malformed output; the defaults are ThreadWeaver's."""

    no_outline: RefusedFork = Policy.SEQUENTIAL
    duplicate_outline: Annotated[Policy, _one_of(Policy.DROP, Policy.SEQUENTIAL, Policy.END_REQUEST)] = (
        Policy.DROP
    )
    too_many_threads: RefusedFork = Policy.SEQUENTIAL
    too_many_forks: RefusedFork = Policy.SEQUENTIAL
    #: The trigger inside a thread, deeper than ``Dialect.max_depth``.
    nested_fork: RefusedFork = Policy.SEQUENTIAL
    #: The prompt and the threads would not fit the context length beside each other.
    no_room: RefusedFork = Policy.SEQUENTIAL
    #: The branch asks for the result of a thread that it has not started.
    unknown_thread: RefusedFork = Policy.SEQUENTIAL
    thread_eos: UnclosedThread = Policy.END_REQUEST
    thread_length: UnclosedThread = Policy.END_REQUEST
    #: The joined context would not fit the model's context length.
    joined_too_long: Annotated[Policy, _one_of(Policy.END_REQUEST)] = Policy.END_REQUEST
    #: ``max_tokens`` or ``max_total_tokens`` ran out inside a fork.
    total_tokens: Annotated[Policy, _one_of(Policy.END_REQUEST)] = Policy.END_REQUEST
