"""``python -m forkjoin_bench.vllm_seam.stock serve ARGS``: ``vllm serve ARGS`` with nothing of this project.

vLLM's own ``main`` asks for a distribution named ``vllm``, which the CPU build is not.
"""

from __future__ import annotations

import argparse
import os
import sys


def serve(argv: list[str]) -> None:
    """Serve until SIGTERM."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from forkjoin_scheduler.vllm_seam.versions import cli_env_setup

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="vllm")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args: argparse.Namespace = parser.parse_args(["serve", *argv])
    command.validate(args)
    command.cmd(args)


if __name__ == "__main__":
    os.environ["VLLM_PLUGINS"] = ""  # ours is one
    serve(sys.argv[2:])
