"""Dialect files: those that come with the package, by name, and a user's own, by path."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.patterns import TURNS, has_known_fields
from forkjoin_scheduler.errors import DialectError
from forkjoin_scheduler.wrong_fields import expected_and_got, place


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"expected each key once, got {key!r} twice", node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


def parse(text: str, origin: str) -> Dialect:
    """Validate the YAML ``text``. Raises DialectError naming ``origin`` and each wrong field."""
    try:
        fields = yaml.load(text, StrictLoader)  # noqa: S506 - a SafeLoader
        if not isinstance(fields, dict):
            raise DialectError(f"dialect {origin}: expected a mapping of fields, got {type(fields).__name__}")
        dialect = Dialect.model_validate(fields)
    except ValidationError as error:
        raise DialectError(f"dialect {origin}: {'; '.join(map(_problem, error.errors()))}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DialectError(f"dialect {origin}: {error}") from error
    try:
        has_known_fields(dialect.join.text, known=TURNS)
    except ValueError as error:
        raise DialectError(f"dialect {origin}: join.text: {error}") from error
    return dialect


def _problem(wrong: Mapping[str, Any]) -> str:
    where = place("", wrong["loc"]).lstrip(".")
    return f"{where}: {expected_and_got(wrong)}" if where else expected_and_got(wrong)


def builtin_names() -> list[str]:
    """The names of the dialects that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml"))


def load(name_or_path: str) -> Dialect:
    """The built-in dialect of that name, or the file at that path. Raises DialectError."""
    if name_or_path in builtin_names():
        return parse((_folder() / f"{name_or_path}.yaml").read_text(encoding="utf-8"), name_or_path)
    path = Path(name_or_path)
    try:
        if not path.is_file():
            raise DialectError(
                f"expected one of {', '.join(builtin_names())} or the path of a YAML file, "
                f"got {name_or_path!r}, which is neither"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DialectError(
            f"dialect {name_or_path}: expected a readable YAML file in UTF-8: {error}"
        ) from error
    return parse(text, str(path))


def _folder() -> Path:
    """The dialect files: inside the wheel, or in the checkout's ``configs/``."""
    packaged = Path(__file__).parent / "built_in"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs" / "dialects"
