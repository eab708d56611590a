"""What our options say of themselves: in help, in the docs and in the OpenAPI schema it is the same text."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from forkjoin.terminal import commands
from forkjoin_bench import cli
from forkjoin_bench.simulator.__main__ import _parser as simulator_parser
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.request.options import ExplicitBranch, RequestOptions
from forkjoin_scheduler.settings import Settings
from forkjoin_server.access.settings import AccessSettings, OverloadSettings
from forkjoin_server.answer.agents import MultiAgent
from forkjoin_server.operate.engine_watch import WatchSettings
from forkjoin_server.playground.serving import PlaygroundSettings
from forkjoin_server.request.incoming import BodySettings
from forkjoin_server.start.flags import own_flags

#: Set by other flags, or no option of its own.
WITHOUT_TEXT = {"dialect", "limits", "caps"}
MODELS: tuple[type[BaseModel], ...] = (
    Limits,
    Settings,
    RequestOptions,
    ExplicitBranch,
    MultiAgent,
    AccessSettings,
    OverloadSettings,
    WatchSettings,
    BodySettings,
    PlaygroundSettings,
)
TEXTS = {
    f"{model.__name__}.{name}": field.description
    for model in MODELS
    for name, field in model.model_fields.items()
    if name not in WITHOUT_TEXT
} | {f"--{name}": action.help for name, action in own_flags().items()}


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Each argument of a parser and of its commands, by a name for a test."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _options(below)
        elif not isinstance(action, argparse._HelpAction):
            yield f"{parser.prog} {'/'.join(action.option_strings) or action.dest}", action


ARGUMENTS = dict(
    option for parser in (commands.parser(), cli.parser(), simulator_parser()) for option in _options(parser)
)
TEXTS |= {name: action.help for name, action in ARGUMENTS.items()}


@pytest.mark.parametrize(("name", "text"), TEXTS.items(), ids=TEXTS)
def test_an_option_says_in_sentences_of_one_fact_each_what_it_does(name, text):
    assert text, f"{name} says nothing"
    sentences = re.split(r"(?<=\.) (?=[A-Z]|\w+:)", text)
    for sentence in sentences:
        assert sentence.endswith("."), f"{name}: no sentence: {sentence!r}"
        assert len(sentence.split()) <= 30, f"{name}: too long: {sentence!r}"
        assert ";" not in sentence, f"{name}: two facts: {sentence!r}"


def test_a_flag_says_its_default():
    for name, field in Settings.model_fields.items():
        if field.description and field.default is not None:
            action = own_flags()[name.replace("_", "-")]
            assert str(action.help).endswith(f"Default: {field.default}.")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_of_a_command_says_its_default(name):
    action = ARGUMENTS[name]
    if action.option_strings and action.default not in (None, False, ""):
        assert "Default: " in str(action.help)
