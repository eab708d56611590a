"""How the processes of ``vllm serve`` log."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

from forkjoin_scheduler.errors import UsageError


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
