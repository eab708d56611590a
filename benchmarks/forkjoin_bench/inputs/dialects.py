"""The dialect that traces are written in: ThreadWeaver's, with either join, and nesting.

One text for both joins, so that one trace drives them: Multiverse's stitched join with
ThreadWeaver's tags.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load

#: Multiverse's.
MAX_DEPTH = 5


def dialect_with(join: str) -> Dialect:
    """The dialect with ``join``, the name of a kind."""
    return Dialect.model_validate(_fields(join))


def write_dialect(folder: Path, join: str) -> Path:
    """Write the dialect as a file of ``folder`` (JSON is YAML)."""
    path = folder / f"{join}.yaml"
    path.write_text(json.dumps(_fields(join), indent=2) + "\n")
    return path


def _fields(join: str) -> dict[str, Any]:
    published = load("threadweaver").model_dump(mode="json", exclude_unset=True)
    return published | {
        "name": f"bench-{join}",
        "join": published["join"] | {"kind": join},
        "max_depth": MAX_DEPTH,
    }
