"""The only file of this package that imports vLLM."""

from __future__ import annotations

from forkjoin_scheduler.errors import UnsupportedEngine


def vllm_serve(arguments: list[str]) -> None:
    """Run ``vllm serve`` with ``arguments``. Raises UnsupportedEngine if vLLM can't be had.

    Goes to vLLM's own subcommand: its ``main`` asks for a distribution named ``vllm``, which the
    CPU build is not.
    """
    try:
        from forkjoin_scheduler.vllm_seam.compat import check_version
    except ImportError as error:
        raise UnsupportedEngine(
            f"vLLM can't be imported ({error}): install vllm-forkjoin[cuda] for GPUs or "
            "vllm-forkjoin[cpu] for CPUs, which bring vLLM 0.32"
        ) from error
    check_version()
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="forkjoin")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(["serve", *arguments])
    command.validate(args)
    command.cmd(args)
