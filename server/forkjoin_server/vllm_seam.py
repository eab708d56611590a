"""The only file of this package that imports vLLM."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from forkjoin_scheduler.dialect import Tokenizer
from forkjoin_scheduler.errors import UnsupportedEngine, UsageError
from forkjoin_scheduler.settings import KEY, Settings


def tokenizer_of(model: str) -> Tokenizer:
    """The tokenizer of ``model``, a folder or a name on the hub. Raises UsageError if it can't be had."""
    from vllm.tokenizers.registry import get_tokenizer

    from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

    try:
        return EngineTokenizer(get_tokenizer(model))
    except Exception as error:  # of whatever kind the hub and the tokenizers raise
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"expected a model with a tokenizer, got {model!r}: {first_line}") from error


def check_version() -> None:
    """Raise UnsupportedEngine if vLLM can't be had, or is of another version."""
    try:
        from forkjoin_scheduler.vllm_seam import compat
    except ImportError as error:
        raise UnsupportedEngine(
            f"vLLM can't be imported ({error}): install vllm-forkjoin[cuda] for GPUs or "
            "vllm-forkjoin[cpu] for CPUs, which bring vLLM 0.32"
        ) from error
    compat.check_version()


def parse_serve(
    argv: list[str],
    add_flags: Callable[[Any], None],
    *,
    default_model: str,
    default_name: str,
    default_drain_s: int,
) -> argparse.Namespace:
    """``argv`` as ``vllm serve`` reads it, with the flags of ``add_flags`` beside its own.

    ``default_model`` is served, as ``default_name``, where neither the flags nor the config file
    name a model in any of vLLM's ways. Raises UsageError for what breaks vLLM's own rules.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    cli_env_setup()
    parser = _parser(default_model)
    serve = ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    add_flags(serve)
    serve.set_defaults(model=None, shutdown_timeout=default_drain_s)
    # vLLM reads the file only where its name stands apart, and drops it elsewhere without a word.
    argv = [part for a in argv for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    try:
        args: argparse.Namespace = parser.parse_args(["serve", *argv])
    except (ValueError, AssertionError) as error:  # of where a model may stand, and of one file at most
        raise UsageError(str(error)) from error
    if args.model_tag is None and args.model in (None, default_model):
        args.model = default_model
        args.served_model_name = args.served_model_name or [default_name]
    return args


def _parser(default_model: str) -> Any:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc, unused-ignore]
        """vLLM's, which also takes a config file that names no model."""

        def load_config_file(self, file_path: str) -> list[str]:
            try:
                flags: list[str] = super().load_config_file(file_path)
            except Exception as error:  # of whatever kind files, YAML and its shapes raise
                first_line = str(error).partition("\n")[0]
                raise UsageError(
                    f"--config: expected a YAML file of flags, got {file_path}: {first_line}"
                ) from error
            return flags if "--model" in flags else [*flags, "--model", default_model]

    return Parser(prog="forkjoin")


def log_as(args: argparse.Namespace, write: Callable[[str, str, list[str]], str]) -> None:
    """Make every process of ``vllm serve`` with ``args`` log by a file of our own.

    ``write`` makes it of vLLM's level, uvicorn's, and the paths whose accesses are not to be logged.
    Raises UsageError if ``args`` name such a file themselves.
    """
    from vllm.config.logging import LoggingConfig

    config = getattr(args, "logging_config", None) or LoggingConfig()
    if config.pylogging_config_file or getattr(args, "log_config_file", None):
        raise UsageError("--log-format: expected no logging config file beside it: drop the one or the other")
    level = getattr(args, "log_level", None) or config.log_level
    quiet_paths = [p.strip() for p in (args.disable_access_log_for_endpoints or "").split(",") if p.strip()]
    path = write(level, args.uvicorn_log_level, quiet_paths)
    args.logging_config = replace(config, pylogging_config_file=path)


def run_serve(args: argparse.Namespace) -> None:
    """Run ``vllm serve`` with ``args``.

    Goes to vLLM's own subcommand: its ``main`` asks for a distribution named ``vllm``, which the
    CPU build is not. Raises UnsupportedEngine, UsageError or DialectError before an engine starts.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand

    _check_tracing(args)
    _check_configs()
    command = ServeSubcommand()
    command.validate(args)
    command.cmd(args)


def _check_tracing(args: argparse.Namespace) -> None:
    """Raise UsageError if traces are asked for that can't be made.

    vLLM's own check of the packages finds them always (``is_tracing_available`` asks whether there
    are functions that could tell); without them it traces nothing. Without statistics, an assertion
    in its ``do_tracing`` ends the first request and all others with it.
    """
    from vllm.tracing import otel_import_error_traceback

    if args.otlp_traces_endpoint is None:
        return
    if otel_import_error_traceback is not None:
        raise UsageError(
            "--otlp-traces-endpoint: expected the OpenTelemetry packages, found none or not all of them: "
            "install vllm-forkjoin[otel]"
        )
    if args.disable_log_stats:
        raise UsageError(
            "--otlp-traces-endpoint: expected no --disable-log-stats beside it, for spans are made of these: "
            "drop the one or the other"
        )


def _check_configs() -> None:
    """Check every engine config that this process makes.

    Patch: ``AsyncEngineArgs.create_engine_config`` also calls ``check_at_start``.
    Symptom without it: the engine core, a process of its own, refuses what can't be: 40 lines of
    traceback, and another for the front end that waits for it. A config made only to be checked
    would take the seconds that this one takes, and do anew what it does on the side.
    Upstream: nothing is called between the config and the start of the engine. Remove when it is.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = EngineArgs.create_engine_config(self, *args, **kwargs)
        check_at_start(vllm_config)
        return vllm_config

    setattr(AsyncEngineArgs, "create_engine_config", create_engine_config)  # noqa: B010


def check_at_start(vllm_config: Any) -> None:
    """What the engine checks of its config, in the front end. The engine's own check stays the last.

    Raises UnsupportedEngine, or DialectError where the model's tokenizer lacks what the dialect needs.
    """
    from forkjoin_scheduler.bound import BoundDialect
    from forkjoin_scheduler.vllm_seam import compat
    from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

    dialect = Settings.model_validate(vllm_config.additional_config.get(KEY, {})).dialect
    if dialect is None:
        return
    compat.check_config(vllm_config)
    BoundDialect.bind(dialect, EngineTokenizer.from_model_config(vllm_config.model_config))
    if dialect.is_stitched:
        # How many blocks there will be, the engine finds out.
        compat.check_stitching(vllm_config, num_blocks=sys.maxsize)
