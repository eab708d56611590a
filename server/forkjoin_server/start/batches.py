"""``forkjoin run-batch``: asks a server by its URL, or one that it starts for itself."""

from __future__ import annotations

import argparse

from forkjoin.batch import command
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.excerpt import cut
from forkjoin_server.operate.own_server import serving

_USAGE = "forkjoin run-batch -i FILE -o FILE [--url URL | [MODEL] [any flag of forkjoin serve]]"


def run_batch(argv: list[str]) -> int:
    """Run ``argv``. Returns the status to end with. Raises UsageError for flags beside ``--url``."""
    args, flags = parser().parse_known_args(argv)
    if args.url is None:
        return command.main(args, serving(flags))
    if flags:
        raise UsageError(
            f"run-batch: expected no flags of a server beside --url, whose server has its own, got "
            f"{cut(' '.join(flags))}: drop these or --url"
        )
    return command.main(args)


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
