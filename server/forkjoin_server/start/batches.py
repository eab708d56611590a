"""``forkjoin run-batch``: asks a server by its URL, or one that it starts for itself."""

from __future__ import annotations

import argparse
import os

from forkjoin.batch import command
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.excerpt import cut
from forkjoin_server.operate.own_server import serving
from forkjoin_server.start import config_file, environment
from forkjoin_server.start.configuration import without_config

_USAGE = "forkjoin run-batch -i FILE -o FILE [--url URL | [MODEL] [any flag of forkjoin serve]]"

_AT_A_SOCKET = "it is asked at a socket that only this user can reach"
#: Flags of servers that a run can't ask, and why it can't.
_CANNOT_ASK = {
    "api-key": "the run gives it a key of its own",
    "ssl-keyfile": _AT_A_SOCKET,
    "ssl-certfile": _AT_A_SOCKET,
    "headless": "such a server answers nobody",
    "grpc": "such a server speaks no HTTP",
}


def run_batch(argv: list[str]) -> int:
    """Run ``argv``. Returns the status to end with.

    Raises UsageError for flags beside ``--url``, and for those of a server that can't be asked.
    """
    args, flags = parser().parse_known_args(argv)
    if args.url is None:
        _check(flags)
        return command.main(args, serving(flags))
    if flags:
        raise UsageError(
            f"run-batch: expected no flags of a server beside --url, whose server has its own, got "
            f"{cut(' '.join(flags))}: drop these or --url"
        )
    return command.main(args)


def _check(flags: list[str]) -> None:
    """Raise UsageError if ``forkjoin serve FLAGS`` would start, and then not answer the run."""
    flags, path = without_config(flags)
    found = {config_file.flag_of(flag.partition("=")[0][2:]) for flag in flags if flag.startswith("--")}
    if path := path or os.environ.get(environment.variable("config")):
        found |= {flag for flag, value in config_file.read(path, "--config").items() if value}
    for flag, why in _CANNOT_ASK.items():
        if flag in found:
            raise UsageError(
                f"run-batch: expected flags of a server that the run can ask, got --{flag}, but {why}: drop "
                "it, or start that server by itself and give its --url"
            )


def parser() -> argparse.ArgumentParser:
    """What reads the flags that are not the server's."""
    ours = argparse.ArgumentParser(
        prog="forkjoin run-batch",
        usage=_USAGE,
        description=f"{command.DESCRIPTION} Without --url, it starts a server of its own, and ends it.",
        allow_abbrev=False,
    )
    command.add_flags(ours)
    return ours
