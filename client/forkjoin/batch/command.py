"""``run-batch`` as a command: what it takes, what it says, and the status that it ends with."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import httpx

from forkjoin.asking import KEY_VARIABLE, Server
from forkjoin.batch.answers import Answers
from forkjoin.batch.asking import Asker
from forkjoin.batch.lines import BadBatch, read_lines
from forkjoin.batch.running import Interrupted, Run
from forkjoin.errors import ForkJoinError
from forkjoin.terminal.printable import printable

#: Each request has a row with an answer; some have not; nothing was asked.
ALL_ANSWERED, SOME_NOT, NOTHING_ASKED = 0, 1, 2

DESCRIPTION = (
    "Ask a file of requests, and write a file of answers, in the shapes of OpenAI's batches. If the command "
    "ends early, run it again: it asks what has no answer yet."
)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run-batch`` to the commands of a parser."""
    add_flags(
        commands.add_parser(
            "run-batch",
            help="Ask a file of requests.",
            description=DESCRIPTION,
        )
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``run-batch``."""
    parser.add_argument(
        "-i", "--input-file", metavar="FILE", type=Path, required=True, help="Requests, one a line."
    )
    parser.add_argument(
        "-o",
        "--output-file",
        metavar="FILE",
        type=Path,
        required=True,
        help="Answers, one a line. If it has some already, only the other requests are asked.",
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        help=f"Address of the server. Its API key is read from ${KEY_VARIABLE}.",
    )
    parser.add_argument(
        "--max-concurrency",
        metavar="N",
        type=int,
        default=256,
        help="Requests open at a time. Default: %(default)s.",
    )
    parser.add_argument(
        "--answer-timeout",
        metavar="S",
        type=float,
        default=3600.0,
        help="Seconds that one answer may take. Default: %(default)s.",
    )
    parser.add_argument(
        "--patience",
        metavar="S",
        type=float,
        default=600.0,
        help="Seconds that the server may be away before the run ends. Default: %(default)s.",
    )


def never() -> None:
    """Why there will be no answers any more: nobody knows that of a server elsewhere."""


@dataclass(frozen=True)
class Asked:
    """Whom a batch asks."""

    server: Server
    #: The Unix socket that it listens at, if it does.
    uds: str | None = None
    #: Why there will be no answers any more; None while there may be.
    why_over: Callable[[], str | None] = never


def run_batch(args: argparse.Namespace, asked: AbstractContextManager[Asked]) -> int:
    """Ask what has no answer yet. Returns the status to end with, and has said why.

    Args:
        args: as ``add_flags`` has them.
        asked: whom; it is entered only if there is something to ask.

    Raises BadBatch if the input or the output is not what it should be: then nothing was asked.
    """
    _check(args)
    lines = read_lines(args.input_file)
    with Answers(args.output_file, lines) as answers:
        run = Run(lines, answers, say)
        say(str(run.progress))
        status, why = _ended(run, args, asked) if run.pending else (ALL_ANSWERED, "")
    if fault := run.progress.first_fault:
        why += f"; the first that failed is {fault}"
    more = "" if status == ALL_ANSWERED else ". To ask what has no answer, run the same command again"
    say(f"{run.progress}, in {args.output_file}{why}{more}")
    return status


def _ended(run: Run, args: argparse.Namespace, asked: AbstractContextManager[Asked]) -> tuple[int, str]:
    """The status that a run ends with, and what has ended it before all was asked."""
    try:
        with asked as whom:
            asyncio.run(_ask_all(run, args, whom))
    except Interrupted as error:
        return error.status, f": {error}"
    except ForkJoinError as error:
        return SOME_NOT, f": {error}"
    except OSError as error:
        return SOME_NOT, f": the file takes no more answers ({error.strerror}): make room"
    return SOME_NOT if run.progress.num_failed else ALL_ANSWERED, ""


async def _ask_all(run: Run, args: argparse.Namespace, asked: Asked) -> None:
    limits = httpx.Limits(max_connections=args.max_concurrency)
    transport = httpx.AsyncHTTPTransport(uds=asked.uds, limits=limits) if asked.uds else None
    timeout = httpx.Timeout(args.answer_timeout, connect=10)
    async with httpx.AsyncClient(timeout=timeout, limits=limits, transport=transport) as http:
        await run.ask_all(Asker(http, asked.server, args.patience), args.max_concurrency, asked.why_over)


def _check(args: argparse.Namespace) -> None:
    for name, least in (("max_concurrency", 1), ("answer_timeout", 0), ("patience", 0)):
        value = getattr(args, name)
        if not least <= value < float("inf"):
            raise BadBatch(f"--{name.replace('_', '-')}: expected a number from {least} on, got {value}")


def say(text: str) -> None:
    """Say it to whoever waits; the answers are in the file."""
    print(f"run-batch: {printable(text)}", file=sys.stderr, flush=True)


def main(args: argparse.Namespace, asked: AbstractContextManager[Asked] | None = None) -> int:
    """Run ``args``: ask ``asked``, or the server at ``--url``. Returns the status to end with."""
    try:
        return run_batch(args, asked or nullcontext(Asked(_server(args.url))))
    except ForkJoinError as error:
        say(str(error))
        return NOTHING_ASKED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _server(url: str | None) -> Server:
    if url is None:
        raise BadBatch("--url: expected the address of a server, got none: give one")
    return Server.named(url, None)
