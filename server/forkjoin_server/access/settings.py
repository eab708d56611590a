"""Flags of the front end about who may ask, and how much may wait. The engine core is told none."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from forkjoin_scheduler.policy.backlog import Bounds

#: What an orchestrator and a scraper ask for, and the playground's files: none tells anything of a request.
OPEN_ROUTES = "/health,/ready,/ping,/version,/metrics,/playground"


class AccessSettings(BaseModel):
    """What ``forkjoin serve`` was told of keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key_file: str | None = Field(
        default=None,
        description="a YAML file of API keys by name, hashed, each with its limits; read again at SIGHUP",
    )
    open_routes: str = Field(
        default=OPEN_ROUTES,
        description="where there are API keys, the paths that need none; every other route needs one",
        json_schema_extra={"metavar": "PATHS"},
    )

    cache_salt: Literal["none", "per-key"] = Field(
        default="none",
        description="per-key: no API key can find out by timing what others' prompts begin with, for none "
        "shares KV cache with another",
    )

    @field_validator("open_routes")
    @classmethod
    def _are_paths(cls, text: str) -> str:
        if wrong := [path for path in _split(text) if not path.startswith("/")]:
            raise ValueError(f"expected paths that begin with a slash, got {wrong[0]!r}")
        return text

    @property
    def open_paths(self) -> frozenset[str]:
        """The paths of ``open_routes``."""
        return frozenset(_split(self.open_routes))


class OverloadSettings(BaseModel):
    """How much ``forkjoin serve`` was told to let wait."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_queued_families: int = Field(
        default=1024,
        ge=1,
        description="requests that may wait to start, each of n answers counted; more: 503",
    )
    max_queued_threads: int = Field(
        default=8192, ge=1, description="threads that all requests that wait are expected to have"
    )
    max_queued_work: int = Field(
        default=4_194_304,
        ge=1,
        description="tokens that all requests that wait are expected to cost, prompts and answers",
    )
    client_stall_s: int = Field(
        default=60,
        ge=1,
        le=86400,
        description="seconds after which a client is disconnected that takes nothing of its answer, sends no "
        "more of its body, or has not sent all its headers",
    )

    @property
    def bounds(self) -> Bounds:
        """What may wait, in all front ends together."""
        return Bounds(self.max_queued_families, self.max_queued_threads, self.max_queued_work)


def _split(text: str) -> list[str]:
    return [path.strip() for path in text.split(",") if path.strip()]
