"""What the server tells the engine core at start: the dialect and the server's limits."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from forkjoin_scheduler.dialect import Dialect, Limits

#: The key of vLLM's ``additional_config`` and of ``SamplingParams.extra_args``.
KEY = "forkjoin"


class Settings(BaseModel):
    """``additional_config["forkjoin"]``; ``dialect`` None switches fork/join off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dialect: Dialect | None = None
    limits: Limits = Limits()
