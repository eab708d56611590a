"""What of an earlier answer's tree a request goes on from: of each branch, what it had written.

It is cut where branches forked. What else a tree has (headers, joined threads) the dialect writes again::

    tree      request: "… <fork>"  [thread 0: "7 </end>"]  [thread 1: "9"    which was cut off here
    stretches ""     : ["… <fork>", then FORK]
              "/0.0" : ["7 </end>", then "stop"]
              "/0.1" : ["9", then OPEN]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from forkjoin_scheduler.families.thread_end import ThreadEnd

#: What followed a stretch: its branch forked, or was cut off. Else it ended, as ``ThreadEnd`` names it.
FORK, OPEN = "fork", "open"


class Part(Struct, frozen=True, omit_defaults=True):
    """Tokens that one segment sampled, and what its tree tells of them."""

    token_ids: list[int]
    logprobs: list[float | None] | None = None
    top: list[dict[int, float]] | None = None
    weight_version: str | None = None
    seed: int | None = None
    has_old_kv: bool | None = None


class Stretch(Struct, frozen=True):
    """What a branch wrote from its start, or from a join, up to its next fork or its end."""

    parts: list[Part]
    then: str

    @property
    def token_ids(self) -> list[int]:
        """All of its tokens."""
        return [token_id for part in self.parts for token_id in part.token_ids]

    @property
    def end(self) -> ThreadEnd | None:
        """How its branch ended with it; None: it did not."""
        return None if self.then in (FORK, OPEN) else ThreadEnd(self.then)


#: What a request is given before it has read its prompt.
BEGIN = Stretch([], OPEN)


class Given(Struct, frozen=True):
    """The prompt of the earlier answer, and the stretches of each branch, by its path (``Branch.path``).

    None of these where nothing was written.
    """

    prompt_ids: list[int]
    stretches: dict[str, list[Stretch]]

    @property
    def num_tokens(self) -> int:
        """Tokens that its branches wrote."""
        stretches = (stretch for of_branch in self.stretches.values() for stretch in of_branch)
        return sum(len(part.token_ids) for stretch in stretches for part in stretch.parts)


def num_tokens_of(given: Mapping[str, Any]) -> int:
    """``Given.num_tokens`` of one in builtin types, as a request carries it. Looks at no token."""
    stretches = (stretch for of_branch in given["stretches"].values() for stretch in of_branch)
    return sum(len(part["token_ids"]) for stretch in stretches for part in stretch["parts"])
