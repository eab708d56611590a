"""What a machine wants done: it decides, its caller performs.

Callers report what happened to a machine (``machine.py``), which answers with a generator of effects. Each is
performed before the next is asked for, so that what the machine reads of the world (``world.py``) is as its
last effect left it. In the engine ``vllm_seam/threads/performing.py`` performs them, on paged KV;
the simulator does it on counted blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.joins.joined import JoinPlan


class How(Enum):
    """How a request ends that its machine ends: ``stop`` or ``length`` to clients."""

    STOPPED = auto()
    CAPPED = auto()


@dataclass(frozen=True, slots=True)
class Park:
    """``branch`` stands still, and holds its KV."""

    branch: Branch


@dataclass(frozen=True, slots=True)
class Start:
    """``thread`` starts, on the KV of its parent up to the fork."""

    thread: Branch


@dataclass(frozen=True, slots=True)
class ShareTail:
    """The threads of ``branch`` get copies of its partly filled last block; then it lets go of its own."""

    branch: Branch


@dataclass(frozen=True, slots=True)
class SampleAgain:
    """A fork after the prompt was refused: ``branch`` draws the sample that was dropped for it."""

    branch: Branch


@dataclass(frozen=True, slots=True)
class WillNotJoin:
    """What was to begin after the first join of ``branch`` begins now: there will be none."""

    branch: Branch


@dataclass(frozen=True, slots=True)
class Swap:
    """``token_ids`` take the place of all behind ``keep`` tokens of the context of ``branch``; it goes on.

    ``why``: what the branch wrote, and the policy for that.
    """

    branch: Branch
    keep: int
    token_ids: tuple[int, ...]
    why: tuple[str, str] = ("stray_tag", "swap")


@dataclass(frozen=True, slots=True)
class Stop:
    """``thread``, which decodes or waits to, does so no more; what its join needs of its KV stays held."""

    thread: Branch


@dataclass(frozen=True, slots=True)
class Keep:
    """``thread`` has ended: keep what its join needs of its KV, and compute what is missing of that.

    When all is there, now or later, call ``ending.closed``. ``may_lack_kv``: whether
    the join needs the KV of all its tokens, and the last may have none yet.
    """

    thread: Branch
    may_lack_kv: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """``threads`` are over, and nothing that they or theirs hold is needed any more."""

    threads: list[Branch]


@dataclass(frozen=True, slots=True)
class PrefillFinishedThreads:
    """Threads of ``branch`` have ended: what its join will prefill of them may be prefilled now."""

    branch: Branch


@dataclass(frozen=True, slots=True)
class Resume:
    """``branch`` goes on as ``plan`` says, after the threads that it waited for."""

    branch: Branch
    plan: JoinPlan
    #: Tokens that its context can still take.
    room: int
    #: Whether it forks there before it writes: when its KV is there, it does, or its next stage starts.
    forks: bool = False


@dataclass(frozen=True, slots=True)
class EndJoined:
    """The parked ``branch``, a thread itself, ends with its threads; its end tag is emitted by itself."""

    branch: Branch
    how: How


@dataclass(frozen=True, slots=True)
class EndFamily:
    """The request ends here, with the ``threads`` that had not."""

    threads: list[Branch]
    how: How


Effect = (
    Park
    | Start
    | ShareTail
    | SampleAgain
    | WillNotJoin
    | Swap
    | Stop
    | Keep
    | Forget
    | PrefillFinishedThreads
    | Resume
    | EndJoined
    | EndFamily
)
Effects = Iterator[Effect]
