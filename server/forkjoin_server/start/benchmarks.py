"""Where ``forkjoin bench`` finds the benchmarks. They import this package, so it imports none of theirs."""

from __future__ import annotations

from argparse import ArgumentParser
from importlib.metadata import entry_points
from typing import Protocol, cast

from forkjoin_scheduler.errors import UsageError


class Benchmarks(Protocol):
    """The module of the entry point."""

    def main(self, argv: list[str]) -> None:
        """Run ``forkjoin bench ARGV``."""

    def parser(self) -> ArgumentParser:
        """What reads ARGV."""


def benchmarks() -> Benchmarks:
    """Those that are installed. Raises UsageError if none are."""
    installed = entry_points(group="forkjoin.commands", name="bench")
    for found in installed:
        return cast(Benchmarks, found.load())
    raise UsageError(
        "bench: expected an entry point named bench in the group forkjoin.commands, found none: "
        "install vllm-forkjoin again (in a checkout: make install-dev)"
    )
