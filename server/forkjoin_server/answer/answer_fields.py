"""The fields that fork/join adds to an answer. The OpenAPI schema has them, and the docs are made from it.

Answers are put together as plain objects (``threads.py``). A test checks those against these models.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from forkjoin_scheduler.families.waits import Wait
from forkjoin_scheduler.policy.leases import KeepRefusal, LeaseState

FinishReason = Literal["stop", "length", "cut", "not_started", "pruned", "cancelled"]
#: A field that an entry may leave out, and that is never null.
_Absent = SkipJsonSchema[None]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


def _sometimes(description: str) -> Any:
    """A field that not every entry has."""
    return Field(default=None, description=description, json_schema_extra=_without_default)


class ForkJoinThreadUsage(_Fields):
    """``usage`` of a thread."""

    completion_tokens: int = Field(ge=0, description="Tokens that the thread generated.")


class ForkJoinWait(_Fields):
    """``waits_for`` of a thread."""

    type: Literal[Wait, "nothing"] = Field(
        description="`wave`: for the wave of `confidence` that starts it, if the vote needs it. "
        "`dependencies`: it starts when the threads that it depends on have been joined. `turn`: "
        "others run first, by the server's policy, its slots or `max_threads_running`. `room`: no slot or no "
        "KV block is free. `grammar`: the grammar of its `response_format` is being compiled. `nothing`: it "
        "runs again."
    )


class ForkJoinThread(_Fields):
    """An entry of ``message.threads``, or in a stream of ``delta.threads``."""

    index: int = Field(
        ge=0, description="Number of the thread in the answer, in the order of starting. Each entry has it."
    )
    id: str | _Absent = _sometimes("Id of the thread: `th_…`. A stream sends it once, at the start.")
    parent_id: str | _Absent = _sometimes(
        "Id of the thread that forked it, or `root` for the answer. A stream sends it once, at the start."
    )
    title: str | _Absent = _sometimes(
        "Title from the outline or the branch, or else its number. A stream sends it once, at the start."
    )
    content: str | _Absent = _sometimes("Text that the thread wrote. A stream sends it in pieces.")
    token_ids: list[int] | _Absent = _sometimes(
        "Token ids of `content`. Only `/inference/v1/generate` sends them."
    )
    finish_reason: FinishReason | _Absent = _sometimes(
        "Why the thread ended. `stop`: by itself. `length`: a limit, a refused fork or the end of the answer "
        "cut it. `cut`: it could no longer change the answer. `not_started`: the same, before it wrote "
        "anything, or it waited for other threads when the answer ended. `pruned`: "
        "the policy of `forkjoin.prune` stopped it. `cancelled`: the client ended it, or a thread above it. "
        "A stream sends it once, at the end."
    )
    usage: ForkJoinThreadUsage | _Absent = _sometimes(
        "What the thread used. A stream sends it once, at the end."
    )
    waits_for: ForkJoinWait | _Absent = _sometimes(
        "Why the thread does not run. Only a stream sends it: when a thread waits, and when it runs again."
    )


class ForkJoinJoined(_Fields):
    """A thread whose KV a stitched join gave to a segment."""

    segment: int = Field(ge=0, description="Number of the thread's last segment.")
    num_tokens: int = Field(ge=0, description="Tokens of that segment which the join took.")
    num_skipped: int = Field(ge=0, description="Tokens at the start of the thread which the join left out.")


class ForkJoinSegment(_Fields):
    """Tokens that follow each other in one context: an entry of ``tree.segments``."""

    thread: int = Field(ge=-1, description="Index of the thread that it is of. -1: the request itself.")
    token_ids: list[int] = Field(description="Its tokens.")
    num_injected: int = Field(
        ge=0,
        description="How many of the first of them were given: the prompt, a header, what a join put there. "
        "The model sampled the others.",
    )
    position: int = Field(ge=0, description="Position of the first one. The others follow without a gap.")
    parent: int | None = Field(
        description="Number of the segment whose context it continues. null: it sees nothing before it."
    )
    fork_offset: int = Field(ge=0, description="After how many of the parent's own tokens it does so.")
    forked_by: int | None = Field(
        description="Number of the segment that called for this thread. null: none did, or the thread has "
        "an earlier segment."
    )
    joined: list[ForkJoinJoined] = Field(
        description="Threads whose KV it sees beside its parent's context (stitched joins)."
    )
    logprobs: list[float | None] | None = Field(
        description="Log-probability of each token. null where it was injected."
    )
    top_logprobs: list[dict[str, float]] | None = Field(
        description="Of each token the likeliest ones, by token id. null: the request asks for none."
    )
    seed: int | None = Field(
        description="What the sampler was seeded with, derived from the request's seed. null: it had none."
    )
    finish_reason: str | None = Field(
        description="How the thread ended that ended here. null: it continued in another segment."
    )
    title: str = Field(description="Title of the thread.")
    weight_version: str | None = Field(
        description="Version of the weights that sampled it. null: nothing was sampled."
    )
    has_old_kv: bool | None = Field(
        description="Whether some of the KV that it reads may be of earlier weights. null: the answer did "
        "not fork."
    )


class ForkJoinTree(_Fields):
    """``tree`` of an answer."""

    segments: list[ForkJoinSegment] = Field(description="Its segments, each after those that it sees.")
    answer_ids: list[int] = Field(description="Token ids of the answer as a stock client sees it.")
    voted: int | None = Field(description="Index of the thread that a vote made the answer. null: no vote.")


class ForkJoinVote(_Fields):
    """``usage.forkjoin.vote``."""

    index: int = Field(ge=0, description="Index of the thread that became the answer.")
    result: str | None = Field(description="Result of the majority. null: no thread voted.")
    cut: list[int] = Field(description="Indices of threads that were cut because the vote was decided.")
    not_started: list[int] = Field(
        description="Indices of threads that did not start because the vote was decided."
    )
    pruned: list[int] = Field(description="Indices of threads that the policy of `forkjoin.prune` stopped.")
    cancelled: list[int] = Field(description="Indices of threads that the client cancelled.")


class ForkJoinKeptUsage(_Fields):
    """``usage.forkjoin.kept``."""

    tokens: int = Field(ge=0, description="Tokens of the answer and its prompt whose KV is kept.")
    seconds: float = Field(description="Seconds for which the request asked.")
    refused: KeepRefusal | None = Field(
        description="Why the answer is not kept. `budget`: the API key keeps as much as it may. `share`: all "
        "keys together do. `not_cached`: no KV block of it can be found again. null: it is kept."
    )


class ForkJoinUsage(_Fields):
    """``usage.forkjoin`` of an answer."""

    num_threads: int = Field(ge=0, description="Threads that started.")
    critical_path_tokens: int = Field(
        ge=0, description="The parent's own tokens and, of each fork, the longest thread's."
    )
    total_tokens: int = Field(
        ge=0,
        description="Generated tokens of all answers, each counted once. `completion_tokens` is the same.",
    )
    given_tokens: int | _Absent = _sometimes(
        "Of `total_tokens`, those that the tree of `continues_tree` has, for each answer again. They were "
        "prefilled, not generated again. Only a request that goes on from a tree gets it."
    )
    vote: ForkJoinVote | _Absent = _sometimes(
        "Outcome of the vote. Only a request that votes gets it (`best_of`, or the dialect)."
    )
    kept: ForkJoinKeptUsage | _Absent = _sometimes(
        "Whether the answer is kept. Only a request with `keep` gets it."
    )
    continued: LeaseState | _Absent = _sometimes(
        "What the request found of the answer that it goes on from, if that was kept. `kept`: it shares its "
        "KV. `expired`, `released`, `reset` (of the prefix cache), `pressure` (running requests needed its "
        "KV blocks): it is kept no more, and what the prefix cache has lost of it was prefilled again."
    )
