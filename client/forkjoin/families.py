"""What ``GET /v1/forkjoin/families`` answers: the families of each engine, and what they wait for. No I/O."""

from __future__ import annotations

from pydantic import BaseModel

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


class Engine(BaseModel):
    """What one engine does."""

    engine: int
    waiting: Waiting
    num_families: int
    num_left_out: int
    families: list[Family]


class Families(BaseModel):
    """What all engines do."""

    engines: list[Engine]


def waits_for(family: Family, engine: Engine) -> str:
    """What a family waits for, itself or its threads; empty if for nothing."""
    if family.state == "waiting":
        if family.kv_blocks or family.total_tokens:  # it has begun: others have taken its blocks or its slot
            return "room, to go on"
        return "room" if engine.waiting.for_room else "its turn"
    num = family.threads.waiting
    return f"the turn of {num} thread{'s' if num > 1 else ''}" if num else ""
