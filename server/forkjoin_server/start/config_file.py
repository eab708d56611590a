"""The one YAML file of ``forkjoin serve``: keys are flags, of fork/join's own and of vLLM's.

vLLM reads it (``--config``), but takes a key for any flag that begins with it, drops a ``false`` that
no flag says, and makes the text "None" of nothing. So it is checked before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from forkjoin_scheduler.dialects.files import StrictLoader
from forkjoin_scheduler.errors import UsageError
from forkjoin_server.start.nearest import nearest


def read(path: str, called: str) -> dict[str, Any]:
    """The values in the file at ``path`` by flag, without the dots after it.

    Raises UsageError, in which the file is ``called`` what it was given by, if it can't be read, is
    no mapping, or has a key twice.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), StrictLoader)  # noqa: S506 - a SafeLoader
        if not isinstance(values, dict):
            raise TypeError(f"expected a mapping, got {type(values).__name__}")  # noqa: TRY301 - worded below
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{called}: expected a YAML file of flags, got {path}: {reason}") from error
    by_flag: dict[str, Any] = {}
    for key, value in values.items():
        flag = flag_of(str(key))
        if flag in by_flag and "." not in str(key):
            raise UsageError(f"{called}: expected each flag once, got {flag} twice in {path}")
        by_flag[flag] = value
    return by_flag


def flag_of(key: str) -> str:
    """The flag of a key: ``max_forks`` is ``max-forks``, ``compilation-config.mode`` a part of its flag."""
    return key.partition(".")[0].replace("_", "-")


def check(path: str, values: Mapping[str, Any], takes_value: Mapping[str, bool]) -> None:
    """Raise UsageError for a key that is no flag, naming the nearest, or a value that says nothing.

    ``takes_value`` has every legal flag, and whether it stands before a value.
    """
    for flag, value in values.items():
        if flag not in takes_value:
            raise UsageError(
                f"{path}: expected flags of forkjoin serve as keys, got {flag!r}: did you mean "
                f"{nearest(flag, takes_value)!r}?"
            )
        if value is None or (value is False and takes_value[flag] and f"no-{flag}" not in takes_value):
            written = "nothing" if value is None else "false"
            raise UsageError(
                f"{path}: {flag}: expected a value, got {written}: drop the key to leave it at its default"
            )
