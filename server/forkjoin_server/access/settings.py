"""Flags of the front end about who may ask. They stay in it: the engine core is told none."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

#: What an orchestrator and a scraper ask for, and tells nothing of any request.
OPEN_ROUTES = "/health,/ready,/ping,/version,/metrics"


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


def _split(text: str) -> list[str]:
    return [path.strip() for path in text.split(",") if path.strip()]
