"""What processes that a test starts may import beside what is installed."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def importable(*folders: Path) -> dict[str, str]:
    """The environment of a process that imports from ``folders`` first, then from where this one does."""
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*map(str, folders), *filter(None, [others])])}
