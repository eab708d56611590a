"""Results as files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

#: Where benchmarks write without ``--out``.
BUILD = Path("build") / "bench"


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the flag ``--out``."""
    parser.add_argument(
        "--out",
        type=Path,
        default=BUILD,
        metavar="FOLDER",
        help="Folder of the results. Default: %(default)s.",
    )


def write_json(folder: Path, name: str, result: Any) -> Path:
    """Write ``result`` to the file ``name``.json in ``folder``, which is made if need be; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path
