"""The command line of ``vllm serve``, with our flags in it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from forkjoin_scheduler.errors import UsageError


class ServeParser:
    """vLLM's parser of ``vllm serve``, with the flags of ``add_flags`` beside its own."""

    def __init__(self, add_flags: Callable[[Any], None], *, default_model: str, default_drain_s: int) -> None:
        from vllm.entrypoints.cli.serve import ServeSubcommand

        from forkjoin_scheduler.vllm_seam.versions import cli_env_setup

        cli_env_setup()
        self._default_model = default_model
        self._parser = _parser(default_model)
        self._serve = ServeSubcommand().subparser_init(self._parser.add_subparsers(dest="subparser"))
        add_flags(self._serve)
        self._serve.set_defaults(model=None, shutdown_timeout=default_drain_s)
        self._parser.serve = self._serve

    @property
    def serve(self) -> argparse.ArgumentParser:
        """The parser of ``vllm serve`` itself, with all flags."""
        parser: argparse.ArgumentParser = self._serve
        return parser

    @property
    def actions(self) -> dict[str, argparse.Action]:
        """What may stand in a config file, by flag without its dashes."""
        found = {o[2:]: a for o, a in self._serve._option_string_actions.items() if o.startswith("--")}
        return {name: action for name, action in found.items() if name not in ("config", "help")}

    def given(self, flags: list[str]) -> set[str]:
        """The destinations that ``flags``, without a config file among them, give a value to."""
        unset = object()
        # Actions that append look at what is there.
        kept = {
            action.dest: None if type(action).__name__ in ("_AppendAction", "_ExtendAction") else unset
            for action in self.actions.values()
        }
        parsed = vars(self._serve.parse_args(flags, argparse.Namespace(**kept)))
        named = {n for n in (*kept, "model_tag") if parsed[n] is not unset and parsed[n] is not None}
        return {"model" if name == "model_tag" else name for name in named}

    def parse(self, argv: list[str], default_name: str) -> argparse.Namespace:
        """``argv`` as ``vllm serve`` reads it.

        The default model is served, as ``default_name``, where neither the flags nor the config file
        name a model in any of vLLM's ways. Raises UsageError for what breaks vLLM's own rules.
        """
        try:
            args: argparse.Namespace = self._parser.parse_args(["serve", *argv])
        except (ValueError, AssertionError) as error:  # of where a model may stand, and of one file at most
            raise UsageError(str(error)) from error
        if args.model_tag is None and args.model in (None, self._default_model):
            args.model = self._default_model
            args.served_model_name = args.served_model_name or [default_name]
        return args


def _parser(default_model: str) -> Any:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc, unused-ignore]
        """vLLM's, which also takes a config file that names no model."""

        #: Its subcommand, which has the flags: vLLM looks for ``--no-...`` of a false in its own.
        serve: Any = None

        def load_config_file(self, file_path: str) -> list[str]:
            try:
                flags: list[str] = FlexibleArgumentParser.load_config_file(self.serve, file_path)
            except Exception as error:  # of whatever kind files, YAML and its shapes raise
                first_line = str(error).partition("\n")[0]
                raise UsageError(
                    f"--config: expected a YAML file of flags, got {file_path}: {first_line}"
                ) from error
            return flags if "--model" in flags else [*flags, "--model", default_model]

    return Parser(prog="forkjoin")  # type: ignore[no-untyped-call]
