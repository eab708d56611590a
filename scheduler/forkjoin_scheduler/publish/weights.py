"""Which weights an engine has: every token of a tree says which ones sampled it."""

from __future__ import annotations

from dataclasses import dataclass

#: What vLLM calls the weights that an engine starts with.
FIRST = "default"


@dataclass
class Weights:
    """One for all families of an engine, changed by whoever changes the weights."""

    version: str = FIRST
