"""The engine's config, and what is checked of it before an engine starts."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_scheduler.wrong_fields import sentence
from forkjoin_server.vllm_seam.patching import put_in_place
from forkjoin_server.vllm_seam.request.control_tokens import check_renderer
from forkjoin_server.vllm_seam.tokenizers import bind_to_model


def engine_config(args: argparse.Namespace) -> Any:
    """The config that ``vllm serve`` makes of ``args``. Raises UsageError where it can't."""
    from pydantic import ValidationError
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import ServeSubcommand

    args.model = args.model_tag or args.model
    try:
        ServeSubcommand().validate(args)
        return AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except ValidationError as error:
        raise UsageError("; ".join(map(sentence, error.errors()))) from error
    except Exception as error:  # of whatever kind the model's files, the hub and the platform raise
        raise UsageError(str(error).partition("\n")[0]) from error


def check_at_start(vllm_config: Any) -> None:
    """What the engine checks of its config, in the front end. The engine's own check stays the last.

    Raises UnsupportedEngine, or DialectError where the model lacks what the dialect needs.
    """
    from forkjoin_scheduler.vllm_seam import compat

    settings = Settings.model_validate(vllm_config.additional_config.get(KEY, {}))
    if (dialect := settings.dialect) is None:
        return
    compat.check_options(settings, vllm_config)
    check_renderer(vllm_config.model_config, settings)
    bind_to_model(dialect, vllm_config)
    compat.check_model(dialect, vllm_config.model_config)
    if dialect.join.moves_kv:
        # How many blocks there will be, the engine finds out.
        compat.check_stitching(vllm_config, num_blocks=sys.maxsize)


def check_configs() -> None:
    """Check every engine config that this process makes.

    Patch: ``AsyncEngineArgs.create_engine_config`` also calls ``check_at_start``.
    Symptom without it: the engine core, a process of its own, refuses what can't be: 40 lines of
    traceback, and another for the front end that waits for it. A config made only to be checked
    would take the seconds that this one takes, and repeat its side effects.
    Upstream: nothing is called between the config and the start of the engine. Remove when it is.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = EngineArgs.create_engine_config(self, *args, **kwargs)
        check_at_start(vllm_config)
        return vllm_config

    put_in_place(AsyncEngineArgs, create_engine_config)
