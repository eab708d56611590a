"""A case in a process of its own, whose engine ends with it and is configured apart from all others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def case_of(module: str, *args: object, timeout_s: float = 840, env: Mapping[str, str] | None = None) -> Any:
    """What ``python -m MODULE ARGS`` prints behind "CASE ", as JSON; ``env``: in the place of this process's."""
    command = [sys.executable, "-m", module, *map(str, args)]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("CASE ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("CASE "))
