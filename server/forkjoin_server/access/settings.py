"""Flags of the front end about who may ask, and how much may wait. The engine core gets none of them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from forkjoin_scheduler.policy.backlog import Bounds

#: What an orchestrator and a scraper ask for, and the playground's files: none tells anything of a request.
OPEN_ROUTES = "/health,/ready,/ping,/version,/metrics,/playground"


class AccessSettings(BaseModel):
    """The settings of API keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key_file: str | None = Field(
        default=None,
        description="YAML file of API keys: the hash and the limits of each, by name. The server reads it "
        "again at SIGHUP.",
    )
    open_routes: str = Field(
        default=OPEN_ROUTES,
        description="Paths that need no API key, separated by commas. If the server has keys, every other "
        "route needs one.",
        json_schema_extra={"metavar": "PATHS"},
    )

    cache_salt: Literal["none", "per-key"] = Field(
        default="none",
        description="Who shares KV cache. none: all requests. per-key: requests of the same API key, so "
        "that no client can learn from timing how others' prompts begin.",
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
    """The settings of overload: how much may wait."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_queued_families: int = Field(
        default=1024,
        ge=1,
        description="Requests that may wait to start. Each of n answers counts. Further requests get a 503.",
    )
    max_queued_threads: int = Field(
        default=8192,
        ge=1,
        description="Threads that all waiting requests together are expected to need. Further requests get "
        "a 503.",
    )
    max_queued_work: int = Field(
        default=4_194_304,
        ge=1,
        description="Tokens that all waiting requests together are expected to need, prompts and answers. "
        "Further requests get a 503.",
    )
    client_stall_s: int = Field(
        default=60,
        ge=1,
        le=86400,
        description="Seconds after which the server disconnects a client that does not read its answer, or "
        "that stops sending its headers or body.",
    )

    @property
    def bounds(self) -> Bounds:
        """What may wait, in all front ends together."""
        return Bounds(self.max_queued_families, self.max_queued_threads, self.max_queued_work)


def _split(text: str) -> list[str]:
    return [path.strip() for path in text.split(",") if path.strip()]
