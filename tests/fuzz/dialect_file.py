"""Dialect files: refused in a sentence, or a dialect that can be bound and whose models can write anything."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import yaml

from forkjoin_scheduler.dialects.dialect import Dialect, Outline, Positions, Sampling, Thread
from forkjoin_scheduler.dialects.files import _folder, builtin_names, parse
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.dialects.policies import Policies
from forkjoin_scheduler.errors import DialectError
from forkjoin_scheduler.joins.kinds import KINDS
from tests.fuzz import sequences
from tests.fuzz.source import Source
from tests.fuzz.tokens import TURNS, FuzzTokenizer

MODELS = (Dialect, Outline, Thread, *KINDS.values(), Positions, Limits, Policies, Sampling)
KEYS = (*dict.fromkeys(name for model in MODELS for name in model.model_fields), "bogus")
WORDS = (
    "trigger", "end", "prompt", "parent", "header", "reprefill", "stitch", "rewrite", "splice", "on_demand", "finish", "vote", "all", "first",
    "tokens", "text", "sequential", "drop", "close_thread", "end_request", "countdown_node", "<T>", "<T>{n}:", "</T>", "<F>", "(?P<number>[0-9]+)\\.",
)  # fmt: skip


@cache
def files() -> tuple[str, ...]:
    return tuple((_folder() / f"{name}.yaml").read_text(encoding="utf-8") for name in builtin_names())


@cache
def _trees() -> tuple[dict[str, Any], ...]:
    return tuple(yaml.safe_load(text) for text in files())


def target(data: bytes) -> None:
    source = Source(data)
    text = _mutated_text(source) if source.one_in(4) else _mutated_tree(source)
    try:
        dialect = parse(text, "a fuzzed file")
    except DialectError as error:
        _check(error)
        return
    tokenizer = FuzzTokenizer([*dict.fromkeys(t for t in dialect.control_tokens if len(t) > 1), *TURNS])
    try:
        bound = sequences.speaking(dialect, tokenizer)
    except DialectError:
        return
    sequences.run(bound, source)


def _mutated_tree(source: Source) -> str:
    """A built-in dialect with some of its fields deleted, changed or moved. YAML takes JSON."""
    tree = copy.deepcopy(source.choice(_trees()))
    for _ in range(source.below(4)):
        place = tree
        while isinstance(inner := place.get(source.choice(tuple(place) or ("",))), dict) and source.below(3):
            place = inner
        key = source.choice((*place, *KEYS))
        if source.one_in(3):
            place.pop(key, None)
        else:
            place[key] = _value(source)
    return json.dumps(tree)


def _value(source: Source) -> object:
    kind = source.below(4)
    if kind == 0:
        return source.choice(WORDS)
    if kind == 1:
        return source.text()
    return source.below(5) if kind == 2 else source.json()


def _mutated_text(source: Source) -> str:
    text = source.choice(files())
    for _ in range(source.below(6)):
        at = source.below(len(text) + 1)
        text = text[:at] + source.text() + text[at + source.below(20) :]
    return text


def _check(error: DialectError) -> None:
    assert str(error).startswith("dialect a fuzzed file: ")
