"""The only file of this package that imports vLLM."""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from forkjoin_scheduler import redact
from forkjoin_scheduler.bound import BoundDialect
from forkjoin_scheduler.dialect import Dialect, Tokenizer
from forkjoin_scheduler.errors import UnsupportedEngine, UsageError
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server import prompts
from forkjoin_server.control_tokens import ControlTokens
from forkjoin_server.interrupts import exit_at_a_signal
from forkjoin_server.orphans import FAILURE_S, end_within

#: Beneath vLLM's, whose handler, level and format it so has.
LOG = logging.getLogger("vllm.forkjoin.server")


def tokenizer_of(model: str) -> Tokenizer:
    """The tokenizer of ``model``, a folder or a name on the hub. Raises UsageError if it can't be had."""
    from vllm.tokenizers.registry import get_tokenizer

    from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

    try:
        return EngineTokenizer(get_tokenizer(model))
    except Exception as error:  # of whatever kind the hub and the tokenizers raise
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"expected a model with a tokenizer, got {model!r}: {first_line}") from error


def stores_responses() -> bool:
    """Whether vLLM stores the responses that ask for it, to be fetched by their ids."""
    from vllm import envs

    return bool(envs.VLLM_ENABLE_RESPONSES_API_STORE)


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


class ServeParser:
    """vLLM's parser of ``vllm serve``, with the flags of ``add_flags`` beside its own."""

    def __init__(self, add_flags: Callable[[Any], None], *, default_model: str, default_drain_s: int) -> None:
        from vllm.entrypoints.cli.serve import ServeSubcommand
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

        cli_env_setup()
        self._default_model = default_model
        self._parser = _parser(default_model)
        self._serve = ServeSubcommand().subparser_init(self._parser.add_subparsers(dest="subparser"))
        add_flags(self._serve)
        self._serve.set_defaults(model=None, shutdown_timeout=default_drain_s)
        self._parser.serve = self._serve

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

    return Parser(prog="forkjoin")


def without_authentication(app: Any) -> tuple[Any, list[bytes]]:
    """``app``, a chain of middleware, without vLLM's that asks for API keys; and the SHA-256 of those keys.

    vLLM's leaves all routes open but those below /v1 and a few more, and knows no key but its own.
    """
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    digests: list[bytes] = []
    outer, inner = None, app
    while inner is not None:
        after = getattr(inner, "app", None)
        if isinstance(inner, AuthenticationMiddleware):
            digests += inner.api_tokens
            if outer is None:
                app = after
            else:
                outer.app = after
        else:
            outer = inner
        inner = after
    return app, digests


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
    """Run ``vllm serve`` with ``args``. SIGTERM and SIGINT end it with 0, also while the engine starts.

    Goes to vLLM's own subcommand: its ``main`` asks for a distribution named ``vllm``, which the
    CPU build is not. Raises UnsupportedEngine, UsageError or DialectError before an engine starts.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand

    from forkjoin_scheduler.vllm_seam import compat

    exit_at_a_signal()
    redact.hide_in_logs()
    compat.check_front_end()
    _check_tracing(args)
    _check_configs()
    _keep_sigterm()
    _disconnect_stalled(args.forkjoin_client_stall_s)
    _bound_failures()
    command = ServeSubcommand()
    command.validate(args)
    command.cmd(args)
    if args.headless:  # which a signal ends by SystemExit, and nothing else without a fault
        raise SystemExit(1)


def _check_tracing(args: argparse.Namespace) -> None:
    """Raise UsageError if traces are asked for that can't be made.

    vLLM's own check of the packages finds them always (``is_tracing_available`` asks whether there
    are functions that could tell); without them it traces nothing. gRPC resolves no host with a user
    before it, and logs them at every try. Without statistics, an assertion in vLLM's ``do_tracing``
    ends the first request and all others with it.
    """
    from vllm.tracing import otel_import_error_traceback

    if args.otlp_traces_endpoint is None:
        return
    if otel_import_error_traceback is not None:
        raise UsageError(
            "--otlp-traces-endpoint: expected the OpenTelemetry packages, found none or not all of them: "
            "install vllm-forkjoin[otel]"
        )
    is_grpc = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc") == "grpc"
    if is_grpc and "@" in args.otlp_traces_endpoint:
        raise UsageError(
            "--otlp-traces-endpoint: expected no user or password in it, which gRPC takes for the host's: "
            "set OTEL_EXPORTER_OTLP_TRACES_HEADERS, or OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf"
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


def _keep_sigterm() -> None:
    """Let a SIGTERM end the start of the engine.

    Patch: ``setup_server``, which vLLM's ``run_server`` calls first, takes SIGTERM back from it.
    Symptom without it: a SIGTERM while the engine starts is lost, for vLLM's handler raises
    KeyboardInterrupt, and ``zmq_socket_ctx`` drops it. The server goes on and serves; or, if the
    engine had not yet been heard of, each waits for the other for minutes.
    Upstream: so in stock ``vllm serve``, too. Remove when that context lets it through.
    """
    from vllm.entrypoints.launchers.api_server import entry

    original = entry.setup_server

    def setup_server(*args: Any, **kwargs: Any) -> Any:
        exit_at_a_signal()
        return original(*args, **kwargs)

    setattr(entry, "setup_server", setup_server)  # noqa: B010


def _disconnect_stalled(seconds: int) -> None:
    """Have the kernel disconnect a client that takes nothing of what it is sent for ``seconds``.

    Patch: ``create_server_socket`` sets TCP_USER_TIMEOUT on the socket that the server listens on; each
    connection inherits it.
    Symptom without it: who never reads keeps its connection, and what was written for it, for ever.
    Upstream: uvicorn has no timeout of writes. Remove when it has one. Linux only; elsewhere, and on Unix
    sockets, nothing happens.
    """
    from vllm.entrypoints.launchers import launcher

    original, option = launcher.create_server_socket, getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None:
        return

    def create_server_socket(*args: Any, **kwargs: Any) -> socket.socket:
        made: socket.socket = original(*args, **kwargs)
        made.setsockopt(socket.IPPROTO_TCP, option, seconds * 1000)
        return made

    setattr(launcher, "create_server_socket", create_server_socket)  # noqa: B010


def _bound_failures() -> None:
    """End a server of several API servers soon after one of its processes has died.

    Patch: ``wait_for_completion_or_failure``, which raises then, also starts a clock.
    Symptom without it: vLLM asks the other processes to end, kind by kind, and gives each kind 5 s. So a
    server with requests in flight takes 15 s to end, in which clients are connected to half of one.
    Upstream: there is no time for all of them together. Remove when there is.
    """
    from vllm.entrypoints.cli import serve

    original = serve.wait_for_completion_or_failure

    def wait_for_completion_or_failure(*args: Any, **kwargs: Any) -> None:
        try:
            original(*args, **kwargs)
        except Exception:
            end_within(FAILURE_S)
            raise

    setattr(serve, "wait_for_completion_or_failure", wait_for_completion_or_failure)  # noqa: B010


def check_at_start(vllm_config: Any) -> None:
    """What the engine checks of its config, in the front end. The engine's own check stays the last.

    Raises UnsupportedEngine, or DialectError where the model's tokenizer lacks what the dialect needs.
    """
    from forkjoin_scheduler.vllm_seam import compat

    dialect = Settings.model_validate(vllm_config.additional_config.get(KEY, {})).dialect
    if dialect is None:
        return
    compat.check_config(vllm_config)
    bind_to_model(dialect, vllm_config)
    if dialect.is_stitched:
        # How many blocks there will be, the engine finds out.
        compat.check_stitching(vllm_config, num_blocks=sys.maxsize)


def make_text_of_control_tokens(client: Any, vllm_config: Any, settings: Settings) -> None:
    """Let the renderer of ``client``, vLLM's, do with control tokens in chats as ``settings`` say."""
    dialect, policy = settings.dialect, settings.control_tokens_in_prompts
    if dialect is None or policy == "allow":
        return
    bound, renderer = bind_to_model(dialect, vllm_config), client.renderer
    # Tokenizers that find no control tokens in texts do not have these.
    added: dict[str, int] = getattr(renderer.tokenizer, "get_added_vocab", dict)()
    tokens = ControlTokens.of(bound.dialect.control_tokens, added, bound.tokenizer)
    is_done = not tokens.ids or prompts.install(
        renderer, tokens, refuses=policy == "refuse", instruction=dialect.instruction
    )
    if not is_done:
        LOG.warning(
            "--control-tokens-in-prompts %s: the model's renderer, %s, makes prompts in a way of its own, so "
            "control tokens in messages stay control tokens",
            policy,
            type(renderer).__name__,
        )


def bind_to_model(dialect: Dialect, vllm_config: Any) -> BoundDialect:
    """``dialect`` as the served model's tokenizer writes it. Raises DialectError if that can't."""
    from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer

    return BoundDialect.bind(dialect, EngineTokenizer.from_model_config(vllm_config.model_config))


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
        reasons = [str(e["msg"]).removeprefix("Value error, ") for e in error.errors()]
        raise UsageError("; ".join(reasons)) from error
    except Exception as error:  # of whatever kind the model's files, the hub and the platform raise
        raise UsageError(str(error).partition("\n")[0]) from error


def name_failed_requests() -> None:
    """Let every error of a request that failed in the engine say which it was, in the shape of its route.

    Patch: ``GenerateBaseServing._raise_if_error``; of /v1/responses the stream, which fails of the error
    that it wants to send (it is none of its events), and so does /v1/messages' of what a chat's stream says.
    Symptom without it: "Internal server error", of whatever request; a stream of /v1/responses is cut off
    without a word, one of /v1/messages ends with pydantic's report of what an error is not, each with a
    traceback in the log.
    Upstream: so in stock ``vllm serve``, too. Remove when its errors name the request and its streams end
    with an error.
    """
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages, wrap_data_with_event
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.exceptions import GenerationError

    class StreamFailed(Exception):
        """What a stream of /v1/responses ends with. No GenerationError, of which vLLM would make JSON."""

    raise_if_error = GenerateBaseServing._raise_if_error
    stream_responses = OpenAIServingResponses.responses_stream_generator
    convert_messages = AnthropicServingMessages.message_stream_converter

    def _raise_if_error(self: Any, finish_reason: str | None, request_id: str) -> None:
        try:
            raise_if_error(self, finish_reason, request_id)
        except GenerationError as error:
            error.args = (failure_of(request_id),)
            raise

    def _fail_stream(self: Any, error: GenerationError) -> str:
        raise StreamFailed(str(error)) from None

    async def responses_stream_generator(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        from openai.types.responses import ResponseErrorEvent

        number = 0
        try:
            async for event in stream_responses(self, *args, **kwargs):
                number = getattr(event, "sequence_number", number) + 1
                yield event
        except StreamFailed as error:
            yield ResponseErrorEvent(
                type="error", code="server_error", message=str(error), param=None, sequence_number=number
            )

    async def message_stream_converter(self: Any, generator: AsyncIterator[str]) -> AsyncIterator[str]:
        errors: list[str] = []

        async def until_error() -> AsyncIterator[str]:
            async for chunk in generator:
                if chunk.startswith('data: {"error"'):
                    errors.append(json.loads(chunk.removeprefix("data: "))["error"]["message"])
                    return
                yield chunk

        async for event in convert_messages(self, until_error()):
            yield event
        for message in errors:
            error = {"type": "error", "error": {"type": "api_error", "message": message}}
            yield wrap_data_with_event(json.dumps(error), "error")

    for owner, patch in (
        (GenerateBaseServing, _raise_if_error),
        (OpenAIServingResponses, responses_stream_generator),
        (AnthropicServingMessages, message_stream_converter),
    ):
        setattr(owner, patch.__name__, patch)
    setattr(  # noqa: B010
        OpenAIServingResponses, "_convert_generation_error_to_streaming_response", _fail_stream
    )


def failure_of(request_id: str) -> str:
    """What a client is told whose request failed in the engine."""
    return (
        f"Internal server error: the request {request_id} failed in the engine, and no other; the server's "
        "log says why. Ask again, or report it with this id"
    )
