"""What scheduler and workers tell each other of groups: one attribute on the way out, one on the way back.

Both ride on vLLM's own objects, which are handed over or pickled with their ``__dict__``. The scheduler
groups nothing before a worker says that it can: with another worker, runner or backend nothing is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forkjoin_scheduler.tensors.two_passes import StepGroups

_GROUPS, _REPORT = "forkjoin_groups", "forkjoin_grouped"


@dataclass(frozen=True)
class Report:
    """What a worker that can group did in a step."""

    #: The KV cache group whose layers it groups, by vLLM's number, and what a token takes in each of them.
    kv_cache_group: int
    token_bytes: int
    #: Whether graphs of whole steps can have groups.
    is_whole: bool = False
    rows: int = 0
    saved_tokens: int = 0


def attach_groups(scheduler_output: Any, groups: StepGroups) -> None:
    """Let workers read the KV of ``groups`` once in this step, if they can."""
    setattr(scheduler_output, _GROUPS, groups)


def groups_of(scheduler_output: Any) -> StepGroups | None:
    """The groups of a step, if it has some."""
    found: StepGroups | None = getattr(scheduler_output, _GROUPS, None)
    return found


def attach_report(model_runner_output: Any, report: Report) -> None:
    """Let the scheduler know what was done; the output may still be on its way from the device."""
    setattr(getattr(model_runner_output, "model_runner_output", model_runner_output), _REPORT, report)


def report_of(model_runner_output: Any) -> Report | None:
    """What the worker did in a step; None if it can't group."""
    found: Report | None = getattr(model_runner_output, _REPORT, None)
    return found
