"""The commands for a terminal, as ``forkjoin`` and ``python -m forkjoin`` have them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from forkjoin.asking import ADDRESS, KEY_VARIABLE, URL_VARIABLE
from forkjoin.batch.command import add_command as add_run_batch
from forkjoin.batch.command import main as run_batch
from forkjoin.client import Client
from forkjoin.errors import ForkJoinError
from forkjoin.terminal.printable import printable

NAMES = ("chat", "trace", "top", "run-batch")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of a parser."""
    chat = commands.add_parser(
        "chat",
        help="Ask a server and watch its threads.",
        description="Ask a server and watch its threads. If the output is a pipe, the command prints only "
        "the answer, as plain text. In the chat, /help lists its commands.",
    )
    _add_server(chat)
    chat.add_argument("--ask", metavar="QUESTION", help="Ask this one question, then exit.")
    chat.add_argument(
        "--save",
        metavar="FILE",
        help="Save the answer to the question of --ask. forkjoin trace FILE draws it.",
    )
    chat.add_argument("--model", help="Name of the model. Default: the one that is served.")
    chat.add_argument("--temperature", type=float, help="Temperature. Default: the model's.")
    chat.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="Tokens of the answer. Default: what the context has room for.",
    )
    trace = commands.add_parser(
        "trace",
        help="Draw a saved answer.",
        description="Draw an answer. If forkjoin chat saved it, the axis is time. Otherwise it is decoding "
        "steps.",
    )
    trace.add_argument(
        "name",
        metavar="FILE|ID",
        help="File with a chat completion or a response in JSON, or with a stream, or the id of a stored "
        "response.",
    )
    _add_server(trace)
    trace.add_argument("--svg", metavar="FILE", type=Path, help="Also draw it into this SVG file.")
    trace.add_argument("--png", metavar="FILE", type=Path, help="Also draw it into this PNG file.")
    trace.add_argument("--dark", action="store_true", help="Draw on a dark background.")
    trace.add_argument("--title", metavar="TEXT", default="", help="Title above the figure.")
    top = commands.add_parser(
        "top",
        help="Show what a server does now.",
        description="Show what a server does now, from its /metrics, and its families. If the output is a "
        "pipe, the command prints one line.",
    )
    _add_server(top)
    top.add_argument(
        "--interval",
        metavar="S",
        type=float,
        default=2.0,
        help="Seconds between two readings. Default: %(default)s.",
    )
    add_run_batch(commands)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help=f"Address of the server. Its API key is read from ${KEY_VARIABLE}. Default: ${URL_VARIABLE}, "
        f"or else {ADDRESS}.",
    )


def parser(prog: str = "forkjoin") -> argparse.ArgumentParser:
    """What reads the command line of these commands."""
    whole = argparse.ArgumentParser(prog=prog)
    add_commands(whole.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    return whole


def main(argv: list[str] | None = None, prog: str = "forkjoin") -> None:
    """Run ``argv``. Exits with 1 and one sentence for what goes wrong, and with 130 at Ctrl-C."""
    args = parser(prog).parse_args(argv)
    try:
        _run(args)
    except ForkJoinError as error:
        print(f"forkjoin: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as error:
        raise SystemExit(130) from error
    except BrokenPipeError as error:  # whoever read our output has gone
        sys.stderr.close()
        raise SystemExit(1) from error


def _run(args: argparse.Namespace) -> None:
    if args.command == "run-batch":
        raise SystemExit(run_batch(args))
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise ForkJoinError(
            f"{args.command} needs rich: pip install 'vllm-forkjoin-client[terminal]'"
        ) from error
    if args.command == "chat":
        _chat(args)
    elif args.command == "trace":
        _trace(args)
    else:
        _top(args)


def _chat(args: argparse.Namespace) -> None:
    from forkjoin.terminal import chat

    if args.save is not None and args.ask is None and sys.stdin.isatty():
        raise ForkJoinError("--save: expected --ask QUESTION beside it: in a chat, type /save FILE")
    names = ("model", "temperature", "max_tokens")
    body = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    with Client(args.url) as client:
        chat.run(client, body, args.ask, args.save)


def _trace(args: argparse.Namespace) -> None:
    from forkjoin.terminal import trace

    figures = {".svg": args.svg, ".png": args.png}
    for suffix, path in figures.items():
        if path is not None and path.suffix != suffix:
            raise ForkJoinError(f"--{suffix[1:]}: expected a file that ends in {suffix}, got {path}")
    wanted = [path for path in figures.values() if path is not None]
    trace.run(args.name, lambda: Client(args.url), wanted, is_dark=args.dark, title=args.title)


def _top(args: argparse.Namespace) -> None:
    from forkjoin.terminal import top

    if not 0.1 <= args.interval <= 3600:
        raise ForkJoinError(f"--interval: expected 0.1 to 3600 seconds, got {args.interval}")
    with Client(args.url, timeout=30) as client:
        top.run(client, args.interval)
