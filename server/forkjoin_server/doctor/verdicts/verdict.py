"""What can be said of an option."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """How an option goes together with forks."""

    WORKS = "works"
    LIMITED = "works with limits"
    #: Not whatever its value is: ``Rule.refusal`` says which.
    REFUSED = "refused"
    UNTESTED = "not tested with forks"
    BESIDE = "does not touch fork/join"


class Topic(str, Enum):
    """Where in docs/compatibility.md a rule stands."""

    ENGINE = "Engine options"
    PARALLEL = "Parallelism"
    TOGETHER = "Together"


@dataclass(frozen=True)
class Rule:
    """What is known of an option, or of a few that belong together."""

    #: As in ``vllm serve --help``, without dashes; or a variable of the environment.
    names: tuple[str, ...]
    verdict: Verdict
    #: What works, or what does not, and why.
    sentence: str
    #: The test that has it, as a path; empty where there is none.
    tested: str = ""
    topic: Topic = Topic.ENGINE
    #: What the sentence of ``compat.REFUSED`` holds that refuses it; empty where it is not, or elsewhere.
    refusal: str = ""
    #: The values that ran with forks, as they are given; empty where it works whatever the value is.
    values: tuple[str, ...] = ()


def flag(name: str) -> str:
    """An option as it is given: ``block-size`` as ``--block-size``; a variable stays as it is."""
    return name if name.isupper() else f"--{name}"
