"""Errors where there are none: one call of one function of fork/join raises."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any, NoReturn

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from forkjoin_scheduler.families.family import Branch, Family
from forkjoin_scheduler.families.pruner import Pruner
from forkjoin_scheduler.families.transcript import Transcript
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.machine import (
    advancing,
    ahead,
    cancelling,
    cutting,
    ending,
    forking,
    joining,
    planning,
    voting,
    writing,
)
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.policy.admission import Admission
from forkjoin_scheduler.vllm_seam import scheduler as composing
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler
from forkjoin_scheduler.vllm_seam.starts import queues, requests

Owner = type | ModuleType
#: Where a function stands, and its name there.
Target = tuple[Owner, str]

#: What vLLM calls of ours: found, not listed, for none to be forgotten.
HOOKS = {
    name
    for name, value in vars(ForkJoinScheduler).items()
    if hasattr(AsyncScheduler, name) and inspect.isfunction(value) and name[:2] != "__"
}
#: What the scheduler holds, likewise; the fence itself is not, nor who only tells operators something.
PARTS = [
    part
    for name, part in vars(composing).items()
    if inspect.isclass(part)
    and part.__module__.startswith("forkjoin_scheduler.vllm_seam.")
    and name not in ("Fence", "Overview", "FamilyDrafts", "ForkJoinScheduler")
]
#: Those that look things up in dictionaries and call nothing of ours, so that there is nothing to raise in.
LOOK_UPS = {"_holds_kv_blocks", "get_num_unfinished_requests", "has_requests", "_update_after_schedule"}
#: What cleans up behind an error: where that fails, the engine ends.
_CLEANERS = {"take_out", "misplaced", "drop_tables", "free_unowned", "miscounted"}
#: Bodies of hooks, which have the fence inside.
_BODIES = {"book", "_step_scheduled", "_step_ended", "restore_all"}


class Boom(Exception):
    """What is raised."""


def targets() -> list[Target]:
    """All functions that hooks come to, but for the hooks themselves, the fence, and what cleans up."""
    owners: list[Owner] = [ForkJoinScheduler, *PARTS]
    owners += [LiveFamily, Machine, Family, Branch, Transcript, Admission, Vote, Pruner, kv, queues, requests]
    owners += [ahead, advancing, cancelling, cutting, ending, forking, joining, planning, voting, writing]
    return [
        (owner, name)
        for owner in owners
        for name, value in vars(owner).items()
        if inspect.isfunction(getattr(owner, name, None))
        and name not in HOOKS | _CLEANERS | _BODIES
        and name[:2] != "__"
        and (inspect.isclass(owner) or value.__module__ == owner.__name__)
    ]


@contextmanager
def counted() -> Iterator[Counter[Target]]:
    """How often hooks call each target inside."""
    calls: Counter[Target] = Counter()

    def count(target: Target, call: Callable[[], Any]) -> Any:
        calls[target] += bool(inside)
        return call()

    with _inside_hooks() as inside, _wrapped(targets(), count):
        yield calls


@contextmanager
def raising(target: Target, number: int, *, is_behind: bool) -> Iterator[set[str]]:
    """The ``number``-th call of ``target`` raises: before it does anything, or when it has done all.

    Yields the names of the hooks that it was called in.
    """
    hooks: set[str] = set()
    calls = 0

    def may_raise(_: Target, call: Callable[[], Any]) -> Any:
        nonlocal calls
        calls += bool(inside)
        if calls != number or not inside or hooks:
            return call()
        if is_behind:
            result = call()
            if inspect.isgenerator(result) and inspect.ismodule(target[0]):  # effects: what it does comes yet
                return behind(result)
        fail()
        return None

    def behind(effects: Iterator[Any]) -> Iterator[Any]:
        yield from effects
        fail()

    def fail() -> NoReturn:
        frame = sys._getframe()
        while frame is not None:
            hooks.update({frame.f_code.co_name} & HOOKS)
            frame = frame.f_back
        raise Boom(f"{target[1]}, call {number}")

    with _inside_hooks() as inside, _wrapped([target], may_raise):
        yield hooks


_PUBLIC = [(ForkJoinScheduler, name) for name in sorted(HOOKS) if name[:1] != "_"]


@contextmanager
def _inside_hooks() -> Iterator[list[str]]:
    """The hooks that are being called at the moment, not counting what vLLM's code calls."""
    inside: list[str] = []

    def enter(hook: Target, call: Callable[[], Any]) -> Any:
        inside.append(hook[1])
        try:
            return call()
        finally:
            inside.pop()

    with _wrapped(_PUBLIC, enter):
        yield inside


@contextmanager
def _wrapped(chosen: list[Target], around: Callable[[Target, Callable[[], Any]], Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in chosen:
            static = inspect.getattr_static(owner, name)
            is_static = isinstance(static, staticmethod)
            wrapped = _wrap((owner, name), static.__func__ if is_static else static, around)
            patch.setattr(owner, name, staticmethod(wrapped) if is_static else wrapped)
        yield


def _wrap(target: Target, function: Any, around: Callable[[Target, Callable[[], Any]], Any]) -> Any:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(target, lambda: function(*args, **kwargs))

    return wrapper
