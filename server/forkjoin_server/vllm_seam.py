"""The only file of this package that imports vLLM."""

from __future__ import annotations

from forkjoin_scheduler.dialect import Tokenizer
from forkjoin_scheduler.errors import UnsupportedEngine, UsageError


def tokenizer_of(model: str) -> Tokenizer:
    """The tokenizer of ``model``, a folder or a name on the hub. Raises UsageError if it can't be had."""
    from vllm.tokenizers.registry import get_tokenizer

    from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

    try:
        return EngineTokenizer(get_tokenizer(model))
    except Exception as error:  # of whatever kind the hub and the tokenizers raise
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"expected a model with a tokenizer, got {model!r}: {first_line}") from error


def vllm_serve(arguments: list[str], *, default_model: str, default_name: str) -> None:
    """Run ``vllm serve`` with ``arguments``. Raises UnsupportedEngine if vLLM can't be had.

    ``default_model`` is served, as ``default_name``, where they name no model in any of vLLM's ways.

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
    serve = command.subparser_init(parser.add_subparsers(dest="subparser"))
    serve.set_defaults(model=None)
    try:
        args = parser.parse_args(["serve", *arguments])
    except ValueError as error:  # vLLM's own rules of where a model may stand
        raise UsageError(str(error)) from error
    if args.model is None and args.model_tag is None:
        args.model = default_model
        args.served_model_name = args.served_model_name or [default_name]
    command.validate(args)
    command.cmd(args)
