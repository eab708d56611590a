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
    #: The repeated outline starts no thread, the wrong dependency holds none up; all else forks.
    DROP = "drop"
    #: The repeated outline starts a thread, too.
    KEEP = "keep"
    #: The outlines are not read: there are none (``no_outline``).
    UNREAD = "unread"
    #: The outlines after the last opening tag, which have forked already, fork again.
    REREAD = "reread"
    #: The outlines are read from all that the branch wrote since its prompt, or since it forked last.
    READ_ALL = "read_all"
    #: What the thread returned returns again.
    REPEAT = "repeat"
    #: The thread gets its end tag and the family joins and goes on. Of a fork that is refused to the request
    #: itself, which has no thread to close: ``END_REQUEST``.
    CLOSE_THREAD = "close_thread"
    #: The summary gets its end tag in the place of the end of sequence, and the branch goes on.
    CLOSE_SUMMARY = "close_summary"
    #: What is open is closed (thread, block), and the request ends after it.
    END_REQUEST = "end_request"


def _one_of(*allowed: Policy) -> AfterValidator:
    def check(value: Policy) -> Policy:
        if value not in allowed:
            raise ValueError(f"expected {' or '.join(p.value for p in allowed)}, got {value.value}")
        return value

    return AfterValidator(check)


RefusedFork = Annotated[Policy, _one_of(Policy.SEQUENTIAL, Policy.CLOSE_THREAD, Policy.END_REQUEST)]
UnclosedThread = Annotated[Policy, _one_of(Policy.CLOSE_THREAD, Policy.END_REQUEST)]


class Policies(Strict):
    """The named outcome of each limit and of each malformed output; the defaults are ThreadWeaver's."""

    no_outline: RefusedFork = Policy.SEQUENTIAL
    duplicate_outline: Annotated[
        Policy, _one_of(Policy.DROP, Policy.KEEP, Policy.SEQUENTIAL, Policy.END_REQUEST)
    ] = Policy.DROP
    #: The trigger follows no opening tag of its own.
    unopened_outline: Annotated[Policy, _one_of(Policy.UNREAD, Policy.REREAD, Policy.READ_ALL)] = (
        Policy.UNREAD
    )
    #: The dialect's rule (``thread.resolve``) makes nothing of an outline's message.
    unknown_message: Annotated[Policy, _one_of(Policy.DROP, Policy.SEQUENTIAL, Policy.END_REQUEST)] = (
        Policy.DROP
    )
    #: A dependency on a thread that is not announced before: on an unknown one, or on itself or a later one.
    wrong_dependency: Annotated[Policy, _one_of(Policy.DROP, Policy.SEQUENTIAL, Policy.END_REQUEST)] = (
        Policy.DROP
    )
    too_many_threads: RefusedFork = Policy.SEQUENTIAL
    too_many_forks: RefusedFork = Policy.SEQUENTIAL
    #: With the threads of the fork more would run than may (``Dialect.max_open``).
    too_many_open: RefusedFork = Policy.SEQUENTIAL
    #: The answer has had its turns (``Dialect.max_turns``).
    too_many_turns: Annotated[Policy, _one_of(Policy.END_REQUEST)] = Policy.END_REQUEST
    #: The trigger inside a thread, deeper than ``Dialect.max_depth``.
    nested_fork: RefusedFork = Policy.SEQUENTIAL
    #: The prompt and the threads would not fit the context length beside each other.
    no_room: RefusedFork = Policy.SEQUENTIAL
    #: The branch asks for the result of a thread that it has not started.
    unknown_thread: RefusedFork = Policy.SEQUENTIAL
    #: It asks for one that has returned already.
    joined_again: Annotated[Policy, _one_of(Policy.REPEAT, Policy.SEQUENTIAL, Policy.END_REQUEST)] = (
        Policy.REPEAT
    )
    thread_eos: UnclosedThread = Policy.END_REQUEST
    thread_length: UnclosedThread = Policy.END_REQUEST
    #: A summary ends by an end of sequence.
    summary_eos: Annotated[Policy, _one_of(Policy.END_REQUEST, Policy.CLOSE_SUMMARY)] = Policy.END_REQUEST
    #: The joined context would not fit the model's context length.
    joined_too_long: Annotated[Policy, _one_of(Policy.END_REQUEST)] = Policy.END_REQUEST
    #: The prompt of the next round would not fit. ``drop``: without the longest reference, until it does.
    prompt_too_long: Annotated[Policy, _one_of(Policy.END_REQUEST, Policy.DROP)] = Policy.END_REQUEST
    #: ``max_tokens`` or ``max_total_tokens`` ran out inside a fork.
    total_tokens: Annotated[Policy, _one_of(Policy.END_REQUEST)] = Policy.END_REQUEST
