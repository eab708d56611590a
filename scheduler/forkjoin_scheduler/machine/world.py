"""What a machine may ask of the world that it decides for: facts only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.families.family import Branch

if TYPE_CHECKING:
    from forkjoin_scheduler.families.pruner import Pruner
    from forkjoin_scheduler.families.vote import Vote


class World(Protocol):
    """An engine, or a simulated one.

    It is asked of branches that have not ended, or ended in this step after a fork.
    """

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the model."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end any sequence."""
        ...

    @property
    def max_model_len(self) -> int:
        """Tokens, and positions, that a context may have."""
        ...

    def now(self) -> float:
        """Seconds, from any point on."""
        ...

    def context(self, branch: Branch) -> list[int]:
        """All tokens of the context of ``branch``, to be read only."""
        ...

    def num_computed(self, branch: Branch) -> int:
        """How many of them have KV."""
        ...

    def is_running(self, thread: Branch) -> bool:
        """Whether ``thread`` has been started and not ended."""
        ...

    def is_standing(self, branch: Branch) -> bool:
        """Whether ``branch`` stands still, parked or until its KV is recomputed."""
        ...

    def holds_kv(self, thread: Branch) -> bool:
        """Whether ``thread``, which runs, holds KV blocks."""
        ...

    def free_kv(self) -> float:
        """The share of the KV blocks that nobody holds."""
        ...

    def pruner(self, name: str, vote: Vote) -> Pruner | None:
        """What the pruning policy of this name decides by; None if it can't be made."""
        ...

    def blame(self, policy: str, error: BaseException) -> None:
        """The pruning policy of this name raised ``error``: it is asked no more."""
        ...
