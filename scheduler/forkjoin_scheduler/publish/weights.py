"""Which weights an engine has: every token of a tree says which ones sampled it."""

from __future__ import annotations

from dataclasses import dataclass

#: What vLLM calls the weights that an engine starts with.
FIRST = "default"


@dataclass
class Weights:
    """One for all families of an engine, changed by whoever changes the weights."""

    version: str = FIRST
    #: Loads since somebody gave a name, and that name.
    _num_unnamed: int = 0
    _name: str = FIRST

    def load(self) -> str:
        """Others have been loaded. Returns their version until somebody names them: "default+1"."""
        self._num_unnamed += 1
        self.version = f"{self._name}+{self._num_unnamed}"
        return self.version

    def name(self, name: str) -> bool:
        """Give them a ``name``. Returns whether these are others, of whose load nobody has told."""
        is_untold = not self._num_unnamed and name != self._name
        self._num_unnamed, self._name, self.version = 0, name, name
        return is_untold
