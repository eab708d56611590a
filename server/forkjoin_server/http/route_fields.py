"""The fields of the answers of our own routes, for the OpenAPI schema and the docs.

The answers are put together as plain objects, by ``about.py``, ``families.py`` and the scheduler. Tests
check those against these models.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.families.waits import Wait


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ForkJoinDialect(_Fields):
    """How the served model forks and joins."""

    name: str = Field(description="Name of the dialect.")
    source: str = Field(description="Where the dialect is published.")
    trigger: str | None = Field(description="Token that forks. null: no single token does.")
    join: str = Field(description="Kind of the join, such as `reprefill` or `stitch`.")
    parent_waits: bool = Field(description="Whether a parent waits for its threads.")
    max_depth: int = Field(description="How deep threads may nest.")


class ForkJoinAbout(_Fields):
    """The answer of ``GET /v1/forkjoin``."""

    object: Literal["forkjoin"] = Field(description="Kind of the answer.")
    version: str = Field(description="Version of vllm-forkjoin.")
    is_embedded_model: bool = Field(description="Whether the server serves the embedded model.")
    max_model_len: int | None = Field(description="Tokens of the longest context.")
    dialect: ForkJoinDialect | None = Field(description="The dialect. null: fork/join is off.")
    limits: Limits = Field(description="Limits of a request that sets none. null stands for no limit.")


class ForkJoinBlocks(_Fields):
    """The KV cache of an engine."""

    total: int = Field(description="KV blocks of the engine.")
    free: int = Field(description="KV blocks that are free.")
    tokens_per_block: int = Field(description="Tokens of one block.")


class ForkJoinWaiting(_Fields):
    """What waits in an engine."""

    requests: int = Field(description="Requests that wait to run.")
    threads: int = Field(description="Threads that wait to run.")
    for_room: int = Field(description="Requests that admission keeps waiting.")


class ForkJoinExpected(_Fields):
    """Means of the requests that have ended."""

    tokens: float = Field(description="Tokens that one more request is expected to generate.")
    threads: float = Field(description="Threads of its widest fork.")
    forking_share: float = Field(description="Part of the requests that fork.")


class ForkJoinThreadStates(_Fields):
    """The threads of a family, by what they do."""

    running: int = Field(description="Threads that decode.")
    waiting: int = Field(description="Threads that wait to run.")
    parked: int = Field(description="Threads that wait for their own threads.")
    ended: int = Field(description="Threads that have ended.")


class ForkJoinFamily(_Fields):
    """A request with all its threads."""

    request_id: str | None = Field(
        description="Id of the request. null: the request is of another key of `--api-key-file`."
    )
    age_s: float = Field(description="Seconds since the request arrived.")
    state: Literal["waiting", "prefill", "decoding", "forked", "joining"] = Field(
        description="What the family does."
    )
    waits_for: list[Wait] = Field(
        description="What it waits for, itself or its threads, the most frequent first. Empty: for nothing. "
        "`turn`: others start or run before it. `room`: it is the next, and there is no slot, or too few KV "
        "blocks are free for what it is expected to need. `wave`, `dependencies` and `grammar`: as of a "
        "thread."
    )
    threads: ForkJoinThreadStates = Field(description="Its threads, by what they do.")
    total_tokens: int = Field(description="Tokens that it has generated.")
    critical_path_tokens: int = Field(description="Those of them that are on the critical path.")
    kv_blocks: int = Field(description="KV blocks that return to the pool when it ends.")
    peak_kv_blocks: int | None = Field(description="The most KV blocks that it was seen to hold.")
    expected_kv_blocks: float | None = Field(description="KV blocks that admission expected.")


class ForkJoinKeptAnswer(_Fields):
    """An answer whose KV is kept."""

    request_id: str | None = Field(
        description="Id of the answer. null: the answer is of another key of `--api-key-file`."
    )
    tokens: int = Field(description="Tokens whose KV is kept.")
    kv_blocks: int = Field(description="KV blocks that it holds. Several answers may hold the same.")
    expires_in_s: float = Field(description="Seconds until its lease ends.")
    num_continued: int = Field(description="Requests that went on from it.")


class ForkJoinKept(_Fields):
    """What an engine keeps for requests to come (`forkjoin.keep`)."""

    kv_blocks: int = Field(description="KV blocks that kept answers hold, each counted once.")
    max_kv_blocks: int = Field(description="The most that they may hold: `--max-kept-share`.")
    num_answers: int = Field(description="Answers that are kept.")
    answers: list[ForkJoinKeptAnswer] = Field(
        description="Those that end first, a hundred at most. None has a client's text."
    )


class ForkJoinEngine(_Fields):
    """What one engine does."""

    engine: int = Field(description="Number of the data-parallel engine.")
    kv_blocks: ForkJoinBlocks = Field(description="Its KV cache.")
    waiting: ForkJoinWaiting = Field(description="What waits.")
    expected: ForkJoinExpected = Field(description="What admission expects of one more request.")
    kept: ForkJoinKept = Field(description="What it keeps for requests to come.")
    num_families: int = Field(description="Families that run or wait.")
    num_left_out: int = Field(description="Families that are not listed. At most a hundred are.")
    families: list[ForkJoinFamily] = Field(
        description="Families, those first that began first. None has a client's text."
    )


class ForkJoinFamilies(_Fields):
    """The answer of ``GET /v1/forkjoin/families``."""

    object: Literal["forkjoin.families"] = Field(description="Kind of the answer.")
    age_s: float = Field(description="Seconds since the engines answered, at most one.")
    engines: list[ForkJoinEngine] = Field(description="The engines.")
