"""Results as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(folder: Path, name: str, result: Any) -> Path:
    """Write ``result`` to the file ``name``.json in ``folder``, which is made if need be; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path
