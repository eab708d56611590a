"""What ``forkjoin serve`` is configured with: flags win over the environment, that over the file.

The three are made one command line for vLLM's parser, in which the last one wins: model, file,
environment, flags. And each value's origin is kept, to be shown at start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from forkjoin_scheduler.errors import UsageError
from forkjoin_server.flag_values import dest_of
from forkjoin_server.start import config_file, environment
from forkjoin_server.start.dialect_choice import choose
from forkjoin_server.start.effective import Given
from forkjoin_server.start.flags import add_flags, check_value, configure, own_flags
from forkjoin_server.vllm_seam.start.command_line import ServeParser

EMBEDDED_MODEL = Path(__file__).parents[1] / "embedded"
EMBEDDED_NAME = "abacus"
#: Seconds that a SIGTERM leaves requests in flight to finish, unless --shutdown-timeout says else.
DRAIN_S = 30


def resolve(argv: list[str], environ: Mapping[str, str]) -> Given:
    """The arguments of vLLM that do what ``forkjoin serve ARGV`` asks for in ``environ``.

    Raises UsageError for flags, variables and keys that can't be, DialectError for a wrong dialect.
    """
    own = own_flags()
    parser = ServeParser(add_flags, default_model=str(EMBEDDED_MODEL), default_drain_s=DRAIN_S)
    variables = environment.read(environ, own)
    for name in own.keys() & variables.keys():
        check_value(name, variables[name], environment.variable(name))
    flags, path = without_config(argv)
    from_flags = parser.given(flags)
    called = "--config" if path is not None else environment.variable("config")
    path = variables.get("config") if path is None else path
    origins = {} if path is None else dict.fromkeys(_from_file(path, called, parser), f"file {path}")
    origins |= {
        parser.actions[name].dest: environment.variable(name) for name in variables.keys() - {"config"}
    }
    origins |= dict.fromkeys(from_flags, "flag")
    model = None if "model" in from_flags else variables.get("model")
    line = _one_line(flags, model, {name: variables[name] for name in own.keys() & variables.keys()})
    args = parser.parse([*line, *(["--config", path] if path is not None else [])], EMBEDDED_NAME)
    if (choice := choose(args)) is not None:
        origins[dest_of("dialect")] = choice.origin
    configure(args)
    return Given(args, origins, choice)


def without_config(argv: list[str]) -> tuple[list[str], str | None]:
    """``argv`` without its ``--config``, and the file that this names.

    vLLM reads the file only where its name stands apart, and drops it elsewhere without a word.
    """
    argv = [part for a in argv for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    if "--config" not in argv:
        return argv, None
    at = argv.index("--config")
    if argv.count("--config") > 1 or at == len(argv) - 1:
        raise UsageError("--config: expected one YAML file of flags, got none or more")
    return argv[:at] + argv[at + 2 :], argv[at + 1]


def _from_file(path: str, called: str, parser: ServeParser) -> set[str]:
    """What the file at ``path`` gives a value to. Raises UsageError for what can't be in it."""
    values = config_file.read(path, called)
    actions = parser.actions
    config_file.check(path, values, {flag: action.nargs != 0 for flag, action in actions.items()})
    for name in own_flags().keys() & values.keys():
        check_value(name, str(values[name]), f"{path}: {name}")
    return {actions[flag].dest for flag in values}


def _one_line(flags: list[str], model: str | None, variables: Mapping[str, str]) -> list[str]:
    """What vLLM parses: a model in front, for which it looks there; then what later ones win over."""
    if model is not None:
        flags = [model, *flags]
    num_models = 1 if flags and not flags[0].startswith("-") else 0
    from_variables = [f"--{name}={text}" for name, text in variables.items()]
    return flags[:num_models] + from_variables + flags[num_models:]
