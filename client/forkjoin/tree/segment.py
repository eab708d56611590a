"""A segment: tokens in a row, which a request or one of its threads read or wrote in one context."""

from __future__ import annotations

from dataclasses import dataclass, field

#: The thread of the request itself.
ROOT = -1


@dataclass(frozen=True)
class Joined:
    """A thread whose KV a stitched join gave to what follows.

    ``segment``: its last one, of which the join took the first ``num_tokens`` tokens. ``num_skipped``: tokens
    at the start of the thread that the join left out.
    """

    segment: int
    num_tokens: int
    num_skipped: int = 0


@dataclass
class Segment:
    """Tokens that follow each other in one context, and what was known before them.

    The first ``num_injected`` tokens were given: the prompt, a thread's header, what a join put there.
    The model sampled the others. A segment is of one ``thread`` (``ROOT``: the request itself). A thread may
    have several, for its context changes at each join.
    """

    thread: int
    token_ids: list[int]
    num_injected: int
    #: Of its first token; the others follow without a gap.
    position: int
    #: The segment whose context it goes on from; None: it sees nothing before it.
    parent: int | None = None
    #: After how many of the parent's own tokens.
    fork_offset: int = 0
    #: The segment that called for the thread that begins here; None: none does.
    forked_by: int | None = None
    #: Threads that it sees beside its parent's context (stitched joins).
    joined: list[Joined] = field(default_factory=list)
    #: Of each token, None where it was injected; None: the request did not ask for them.
    logprobs: list[float | None] | None = None
    #: Of each token the most likely ones, by token id; None: the request did not ask for them.
    top_logprobs: list[dict[int, float]] | None = None
    #: Of the sampler; None: the request had none.
    seed: int | None = None
    #: How its thread ended, which ended here; None: it went on in another segment.
    finish_reason: str | None = None
    #: What the thread is called.
    title: str = ""
    #: Of the weights that sampled it; None: nothing was sampled, or the server does not tell.
    weight_version: str | None = None
    #: Whether some of the KV that it reads may be of earlier weights; None: the server does not tell.
    has_old_kv: bool | None = None

    @property
    def sampled(self) -> list[bool]:
        """Of each token whether the model sampled it."""
        return [place >= self.num_injected for place in range(len(self.token_ids))]
