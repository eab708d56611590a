"""What ``GET /v1/forkjoin/families`` answers: the families of each engine, and what they wait for. No I/O."""

from __future__ import annotations

from pydantic import BaseModel, Field

PATH = "/v1/forkjoin/families"


class Threads(BaseModel):
    """How many threads of a family are in each state."""

    running: int = 0
    waiting: int = 0
    parked: int = 0
    ended: int = 0


class Family(BaseModel):
    """A request with all its threads."""

    #: None: of another API key.
    request_id: str | None
    age_s: float
    state: str
    #: Itself or its threads, the most frequent first; what a ``ThreadWaits`` says of a thread.
    waits_for: list[str] = Field(default_factory=list)
    threads: Threads
    total_tokens: int
    critical_path_tokens: int
    kv_blocks: int
    #: None: admission has not let it in, or has nothing to do with it.
    peak_kv_blocks: int | None
    expected_kv_blocks: float | None


class Waiting(BaseModel):
    """What an engine lets wait; ``for_room``: requests that admission keeps out."""

    requests: int
    threads: int
    for_room: int


class KeptAnswer(BaseModel):
    """An answer whose KV is kept for requests that continue it."""

    #: None: of another API key.
    request_id: str | None
    tokens: int
    kv_blocks: int
    expires_in_s: float
    num_continued: int


class Kept(BaseModel):
    """What an engine keeps; ``kv_blocks`` counts each block once, ``answers`` are those that end first."""

    kv_blocks: int
    max_kv_blocks: int
    num_answers: int
    answers: list[KeptAnswer]


class Engine(BaseModel):
    """What one engine does."""

    engine: int
    waiting: Waiting
    num_families: int
    num_left_out: int
    families: list[Family]
    #: None: of a server from before there were kept answers.
    kept: Kept | None = None


class Families(BaseModel):
    """What all engines do."""

    engines: list[Engine]

    def named(self, name: str) -> Family | None:
        """The family of the chat completion that was asked for with ``name`` as its ``request_id``."""
        # vLLM says before a request's id what it is of, our server appends a key
        start = f"chatcmpl-{name}-"
        families = (family for engine in self.engines for family in engine.families)
        return next(
            (f for f in families if f.request_id is not None and f.request_id.startswith(start)), None
        )


#: What stands for each wait that a server tells of.
_WAITS = {
    "wave": "its wave",
    "dependencies": "what it depends on",
    "turn": "its turn",
    "room": "room",
    "grammar": "its grammar",
}


def waits_for(family: Family) -> str:
    """What a family waits for, itself or its threads, in words; empty if for nothing."""
    waits = ", ".join(_WAITS.get(wait, wait) for wait in family.waits_for)
    if family.state == "waiting" or not waits:
        return waits
    return f"{waits}: {family.threads.waiting} thread{'s' if family.threads.waiting != 1 else ''}"
