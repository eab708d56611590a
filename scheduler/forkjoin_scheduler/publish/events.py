"""What happens to families, as the scheduler emits it: to metrics, spans, the log, streams and clients.

One class an event. They are encoded where they leave the engine core and decoded once, where they reach an
API server (``vllm_seam/wire.py``). ``index`` is a thread's, ``parent_index`` that of the branch that forked:
``ROOT`` for the request itself.
"""

from __future__ import annotations

import re

from msgspec import Struct

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.errors import EnginePlace, FrontEndPlace, OwnPolicy
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.waits import Wait
from forkjoin_scheduler.policy.leases import KeepRefusal, LeaseEnd, LeaseState
from forkjoin_scheduler.request.given import Part

#: The index of the request itself, as a parent of threads.
ROOT = -1


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class _Event(Struct, frozen=True, kw_only=True, tag=_snake_case):
    """Named on the wire, in the log and in metrics by its class: ``thread_ended``."""

    @property
    def kind(self) -> str:
        """Its name."""
        return str(self.__struct_config__.tag)


# ---- of a family -------------------------------------------------------------------------------


class NewThread(Struct, frozen=True, kw_only=True):
    """A thread of a fork: its number in the outline, and its title there."""

    index: int
    number: str
    title: str

    @property
    def name(self) -> str:
        """What it is called: its title, if it has one."""
        return self.title or self.number


class Forked(_Event, frozen=True, kw_only=True):
    """A branch forked. ``shared_tokens`` of its context each thread reads and does not compute."""

    parent_index: int
    threads: list[NewThread]
    shared_tokens: int
    #: Those of them that do not start now, but in a later wave of their vote or a later stage, if at all.
    num_later: int = 0
    #: Outlines that were announced twice, and dropped.
    num_duplicates: int = 0


class ThreadsStarted(_Event, frozen=True, kw_only=True):
    """A later wave of a vote, or a later stage of a fork: the indices of its threads."""

    parent_index: int
    threads: list[int]
    shared_tokens: int


class Tokens(_Event, frozen=True, kw_only=True):
    """What a thread wrote in a step. Its ``text`` is known in the API server only (``thread_text.py``)."""

    index: int
    token_ids: list[int]
    text: str = ""


class Waiting(_Event, frozen=True, kw_only=True):
    """What a thread waits for; None: it runs again."""

    index: int
    waits_for: Wait | None


class ThreadEnded(_Event, frozen=True, kw_only=True, omit_defaults=True):
    """A thread ended. ``policy``: the dialect's, if it ended without its end tag."""

    index: int
    reason: ThreadEnd
    num_tokens: int
    policy: Policy | None = None


class JoinedAhead(_Event, frozen=True, kw_only=True):
    """Tokens of ended threads were prefilled before their join was due."""

    prefilled_tokens: int


class Joined(_Event, frozen=True, kw_only=True):
    """A branch goes on after its threads, with so many tokens prefilled."""

    parent_index: int
    prefilled_tokens: int


class Voted(_Event, frozen=True, kw_only=True):
    """The thread that is the answer of a vote, and the result that most have. None: nobody has one."""

    index: int
    result: str | None


class Refused(_Event, frozen=True, kw_only=True):
    """What a branch wrote is no fork: by the dialect's ``policy``, or because of what it has in its place."""

    parent_index: int
    reason: str
    policy: str


class Tolerated(_Event, frozen=True, kw_only=True):
    """What a branch wrote is malformed ``num`` times, and by the dialect's ``policy`` counts all the same."""

    parent_index: int
    reason: str
    policy: Policy
    num: int = 1


class Limited(_Event, frozen=True, kw_only=True):
    """The request ran into a limit."""

    reason: str
    policy: Policy


class Joins(Struct, frozen=True, kw_only=True):
    """A thread whose KV a stitched join takes: ``num_tokens`` tokens of its last ``segment``.

    ``num_skipped``: tokens at the thread's start that are left out.
    """

    segment: int
    num_tokens: int
    num_skipped: int


class SegmentBegan(_Event, frozen=True, kw_only=True):
    """A branch goes on in a context of its own, of a request that wants its tree (``publish/recording.py``).

    The context is that of segment ``parent`` up to ``fork_offset`` of its own tokens (None: there is none),
    the threads that are ``joined`` with it, and ``token_ids``, the first of them at ``position``.
    """

    segment: int
    index: int
    token_ids: list[int]
    position: int
    parent: int | None = None
    fork_offset: int = 0
    forked_by: int | None = None
    joined: list[Joins] = []
    seed: int | None = None
    #: Whether some of the KV that it reads may be of earlier weights than those that write it.
    has_old_kv: bool = False


class SegmentGiven(_Event, frozen=True, kw_only=True):
    """A segment has what an earlier answer had written there, and nothing else."""

    segment: int
    part: Part


class SegmentWrote(_Event, frozen=True, kw_only=True):
    """What the model sampled in a segment in a step; with logprobs, if they are wanted, ``top`` ones too."""

    segment: int
    token_ids: list[int]
    weight_version: str | None = None
    logprobs: list[float] | None = None
    top: list[dict[int, float]] | None = None


class Drafted(_Event, frozen=True, kw_only=True):
    """Tokens that were drafted for a family by ``source``, and those of them that were right."""

    source: str
    num: int
    num_right: int


class ForkLatency(_Event, frozen=True, kw_only=True):
    """From the trigger to the first token of a thread."""

    seconds: float


class JoinLatency(_Event, frozen=True, kw_only=True):
    """From the last thread's end to the next token."""

    seconds: float


class Counts(_Event, frozen=True, kw_only=True):
    """What the ``family`` of this request id has used so far.

    ``surplus_tokens``: how many more its answer shows than were generated (injected text; negative where
    some is not shown).
    """

    family: str
    num_threads: int
    total_tokens: int
    critical_path_tokens: int
    surplus_tokens: int


class Progress(Counts, frozen=True, kw_only=True):
    """So far."""


class FamilyEnded(Counts, frozen=True, kw_only=True):
    """In all: the last event of a family."""


class Kept(_Event, frozen=True, kw_only=True):
    """The KV of so many tokens of the answer is kept for ``seconds``; none, if there is a ``refusal``."""

    num_tokens: int
    seconds: float
    refusal: KeepRefusal | None


class Continued(_Event, frozen=True, kw_only=True):
    """The request goes on from an answer that is ``kept``, or was and why it is no more."""

    state: LeaseState


class InternalError(_Event, frozen=True, kw_only=True):
    """An error in fork/join code, or in a policy of the user's own, contained."""

    where: EnginePlace | FrontEndPlace | OwnPolicy


# ---- of an engine ------------------------------------------------------------------------------


class Load(_Event, frozen=True, kw_only=True):
    """What waits to run in an engine, and what is expected of one more request that may fork."""

    threads: int
    requests: int
    expected_tokens: int
    expected_threads: float


class Leased(_Event, frozen=True, kw_only=True):
    """Answers that are kept, their KV blocks, and why others are no more."""

    num_leases: int
    num_blocks: int
    ends: list[LeaseEnd]


class Admission(_Event, frozen=True, kw_only=True):
    """Of requests that have ended: most KV blocks held over those that admission expected."""

    peak_ratios: list[float]


class Grouped(_Event, frozen=True, kw_only=True):
    """Rows of steps that read shared KV together, and tokens of KV so not read again, in each layer."""

    rows: int
    saved_tokens: int


Event = (
    Forked
    | ThreadsStarted
    | Tokens
    | Waiting
    | ThreadEnded
    | JoinedAhead
    | Joined
    | Voted
    | Refused
    | Tolerated
    | Limited
    | SegmentBegan
    | SegmentGiven
    | SegmentWrote
    | Drafted
    | ForkLatency
    | JoinLatency
    | Progress
    | FamilyEnded
    | Kept
    | Continued
    | InternalError
    | Load
    | Leased
    | Admission
    | Grouped
)
