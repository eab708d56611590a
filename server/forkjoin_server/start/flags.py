"""Fork/join's own flags of ``forkjoin serve``, and what they make of vLLM's arguments.

They are added to vLLM's own parser. So they may stand wherever its flags may, in its config file
too, and what it makes of them (dotted keys, underscores, a file) is merged before we add ours.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server.access import keys
from forkjoin_server.access.settings import AccessSettings, OverloadSettings
from forkjoin_server.flag_values import check_fields, dest_of, flag_of, given, values_given
from forkjoin_server.operate import logs
from forkjoin_server.operate.engine_watch import WatchSettings
from forkjoin_server.playground.serving import PlaygroundSettings
from forkjoin_server.request.incoming import BodySettings
from forkjoin_server.start.dialect_choice import DEFAULT

SCHEDULER = "forkjoin_scheduler.vllm_seam.scheduler.ForkJoinScheduler"
MIDDLEWARE = "forkjoin_server.http.middleware.ForkJoinMiddleware"

#: Settings with a flag of their own; the others come from the dialect and the limits.
_SETTINGS = tuple(n for n, field in Settings.model_fields.items() if field.description)
#: What the front end keeps for itself, whatever the dialect.
_FRONT_END: tuple[type[BaseModel], ...] = (
    AccessSettings,
    OverloadSettings,
    WatchSettings,
    BodySettings,
    PlaygroundSettings,
)


def add_flags(parser: Any) -> None:
    """Add our flags to ``parser`` (argparse's, or vLLM's, which is one)."""
    group = parser.add_argument_group("ForkJoin", "How requests fork into threads.")
    group.add_argument(
        "--dialect",
        dest=dest_of("dialect"),
        metavar="NAME|FILE|none",
        help=f"How the model was trained to fork: {', '.join(builtin_names())}. Or a YAML file. none "
        f"switches fork/join off. Default: the one that fits the model's files, or {DEFAULT} if none or "
        "several fit.",
    )
    group.add_argument(
        logs.FLAG,
        dest=dest_of("log_format"),
        choices=["text", "json"],
        default="text",
        help="Format of the server's output. json: one JSON object a line, on standard output. Default: "
        "text.",
    )
    for model, names in ((Limits, tuple(Limits.model_fields)), (Settings, _SETTINGS)):
        for name in names:
            _add_flag(group, name, model.model_fields[name])
    for own in _FRONT_END:
        for name, field in own.model_fields.items():
            _add_flag(group, name, field)


def _add_flag(group: Any, name: str, field: FieldInfo) -> None:
    """A flag for ``field``: what it may be is left to the model, but for its type."""
    kinds = get_args(field.annotation) or (field.annotation,)
    is_choice = get_origin(field.annotation) is Literal
    default = "" if field.default is None or field.default is False else f" Default: {field.default}."
    more = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    metavar = more.get("metavar", "PATH" if str in kinds else "N")
    how: dict[str, Any] = {"choices": kinds} if is_choice else {"type": kinds[0], "metavar": metavar}
    if bool in kinds:  # alone it says true; a value is for variables
        how = {"type": true_or_false, "metavar": "[true|false]", "nargs": "?", "const": True}
    group.add_argument(
        flag_of(name),
        dest=dest_of(name),
        default=argparse.SUPPRESS,
        help=f"{field.description}{default}",
        **how,
    )


def true_or_false(text: str) -> bool:
    """What a flag or variable says. Raises ValueError for anything else."""
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def own_flags() -> dict[str, argparse.Action]:
    """What ``add_flags`` adds, by the name of the flag without its dashes."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    return {action.option_strings[0].removeprefix("--"): action for action in parser._actions}


def check_value(name: str, text: str, called: str) -> None:
    """Raise UsageError, which calls the flag ``name`` what it was given by, if it can't be ``text``."""
    action = own_flags()[name]
    try:
        value = action.type(text) if callable(action.type) else text
    except ValueError as error:
        kind = getattr(action.type, "__name__", "value")
        raise UsageError(f"{called}: expected {kind}, got {text!r}") from error
    if action.choices is not None and value not in action.choices:
        raise UsageError(f"{called}: expected one of {', '.join(action.choices)}, got {text!r}")
    field = action.dest.removeprefix(dest_of(""))
    models: tuple[type[BaseModel], ...] = (Limits, Settings, *_FRONT_END)
    for model in models:
        if field in model.model_fields and field != "dialect":
            check_fields(model, {field: value}, called)


def configure(args: argparse.Namespace) -> None:
    """Make vLLM's parsed ``args`` serve with fork/join as our flags among them say.

    Raises DialectError for a wrong dialect, UsageError for flags and a file of keys that can't be.
    """
    config, dialect_name = args.additional_config, getattr(args, dest_of("dialect"))
    if not isinstance(config, dict) or KEY in config:
        raise UsageError(f"--additional-config: expected a JSON object without the key {KEY!r}, got {config}")
    for model in _FRONT_END:
        for name, value in given(args, model).model_dump().items():
            setattr(args, dest_of(name), value)
    given(args, WatchSettings).check()
    _check_keys(args, are_weighed=dialect_name != "none")
    limits, more = values_given(args, Limits), values_given(args, Settings)
    args.middleware = [*args.middleware, MIDDLEWARE]
    if dialect_name == "none":
        if useless := [flag_of(name) for name in limits | more]:
            raise UsageError(
                f"{', '.join(useless)}: expected a dialect, for --dialect none switches fork/join off: "
                "drop the one or the other"
            )
        return
    settings = Settings.of(load(dialect_name), limits, **more)
    _take_classes(args, settings)
    args.additional_config = config | {KEY: settings.model_dump(mode="json")}


def _check_keys(args: argparse.Namespace, *, are_weighed: bool) -> None:
    """Raise UsageError for a file of keys that can't be read, or keys beside a door that asks for none."""
    if (path := getattr(args, dest_of("api_key_file"))) is not None:
        keys.read(path, are_weighed=are_weighed)
    has_keys = path is not None or args.api_key or os.environ.get("VLLM_API_KEY")
    if has_keys and (getattr(args, "grpc", False) or getattr(args, "grpc_port", None) is not None):
        raise UsageError(
            "--grpc: expected no API keys beside it, for vLLM's gRPC server asks for none: drop the one "
            "or the other"
        )


def _take_classes(args: argparse.Namespace, settings: Settings) -> None:
    """Our scheduler, and our worker where joins are stitched or attention is grouped, in vLLM's place."""
    if args.scheduler_cls is not None:
        raise UsageError(
            "--scheduler-cls: expected none, for fork/join is a scheduler itself: drop it, or serve "
            "with --dialect none"
        )
    args.scheduler_cls = SCHEDULER
    if args.worker_cls == "auto":
        from forkjoin_scheduler.vllm_seam.compat import worker_of

        args.worker_cls = worker_of(settings) or "auto"
    elif settings.dialect is not None and settings.dialect.join.moves_kv:
        raise UsageError(
            "--worker-cls: expected none, for a stitched join needs a worker of its own: drop it, or "
            "choose a dialect that joins by prefilling"
        )
