"""The dialect that traces are written in: ThreadWeaver's, with either join, and nesting.

One text for both joins, so that one trace drives them: Multiverse's stitched join with
ThreadWeaver's tags.
"""

from __future__ import annotations

import json
from pathlib import Path

from forkjoin_scheduler.dialects.files import load

#: Multiverse's.
MAX_DEPTH = 5


def write_dialect(folder: Path, join: str) -> Path:
    """Write the dialect as a file of ``folder`` (JSON is YAML)."""
    published = load("threadweaver").model_dump(mode="json", exclude_unset=True)
    fields = published | {
        "name": f"bench-{join}",
        "join": published["join"] | {"kind": join},
        "max_depth": MAX_DEPTH,
    }
    path = folder / f"{join}.yaml"
    path.write_text(json.dumps(fields, indent=2) + "\n")
    return path
