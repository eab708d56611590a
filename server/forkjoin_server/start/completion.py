"""``forkjoin completion``: a shell's script that completes our commands and flags, those of vLLM too.

The script is made once and holds all of them: to complete a word starts no Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from forkjoin.terminal.commands import add_commands
from forkjoin_scheduler.dialects.files import builtin_names
from forkjoin_scheduler.errors import UsageError
from forkjoin_server.start.benchmarks import benchmarks
from forkjoin_server.start.flags import add_flags

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """The script for ``shell``. Raises UsageError if the package that writes it is missing."""
    if find_spec("shtab") is None:
        raise UsageError("completion needs shtab: install vllm-forkjoin[completion]")
    import shtab

    whole = parser()
    for action in _actions(whole):
        if action.type is Path or "FILE" in str(action.metavar):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(whole, shell))


def parser() -> argparse.ArgumentParser:
    """The whole command line, to be completed. To run it, each command has a parser of its own."""
    whole = argparse.ArgumentParser(prog="forkjoin")
    whole.add_argument("--version", action="store_true", help="Print the version of vllm-forkjoin.")
    commands = whole.add_subparsers()
    serve = _serve()
    commands.add_parser("serve", parents=[serve], add_help=False, help="Start a server.")
    doctor = commands.add_parser("doctor", parents=[serve], add_help=False, help="Check what serve needs.")
    doctor.add_argument("--json", action="store_true", help="Print JSON.")
    verify = commands.add_parser("verify", parents=[serve], add_help=False, help="Verify forks and joins.")
    verify.add_argument("--json", metavar="FILE", help="Write the report there.")
    dialects = commands.add_parser("dialects", help="List the built-in dialects.").add_subparsers()
    check = dialects.add_parser("check", help="Check a model against a dialect.")
    check.add_argument("model", metavar="MODEL|FILE")
    check.add_argument("dialect", choices=builtin_names())
    test = dialects.add_parser("test", help="Replay a transcript through a dialect.")
    test.add_argument("dialect", choices=builtin_names())
    test.add_argument("transcript", metavar="FILE")
    infer = dialects.add_parser("infer", help="Say which dialect a model or a transcript speaks.")
    infer.add_argument("of", metavar="MODEL|FILE")
    infer.add_argument("dialects", metavar="FILE", nargs="*")
    new = (
        commands.add_parser("keys", help="Manage API keys.")
        .add_subparsers()
        .add_parser("new", help="Make a key.")
    )
    new.add_argument("name", metavar="NAME")
    add_commands(commands)
    commands.add_parser("bench", parents=_bench(), add_help=False, help="Run benchmarks.")
    completion = commands.add_parser("completion", help="Print a shell's completion script.")
    completion.add_argument("shell", choices=SHELLS)
    return whole


def _serve() -> argparse.ArgumentParser:
    """The flags of ``forkjoin serve``; without vLLM, our own."""
    if find_spec("vllm") is None:
        alone = argparse.ArgumentParser()
        add_flags(alone)
        return alone
    from forkjoin_server.vllm_seam.start.command_line import ServeParser

    return ServeParser(add_flags, default_model="", default_drain_s=0).serve


def _bench() -> list[argparse.ArgumentParser]:
    """The parser of ``forkjoin bench``, where what it needs is installed."""
    if any(find_spec(name) is None for name in ("vllm", "aiohttp", "matplotlib")):
        return []
    return [benchmarks().parser()]


def _actions(whole: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in whole._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
