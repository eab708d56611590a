"""What is declared in dialect files: no key that nobody knows, nothing changed later."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A part of a dialect."""

    model_config = ConfigDict(extra="forbid", frozen=True)
