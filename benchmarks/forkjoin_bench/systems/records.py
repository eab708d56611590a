"""Reading what ``recording.py`` writes, while it is being written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class RecordReader:
    """The lines of a record, as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        #: KV blocks of the engine.
        self.num_blocks = 0

    def take(self) -> list[dict[str, Any]]:
        """The steps written since the last call; a line half written waits for the next."""
        with self.path.open(encoding="utf-8") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self._offset += len(whole.encode())
        lines = [json.loads(line) for line in whole.splitlines()]
        for line in lines:
            self.num_blocks = line.get("total", self.num_blocks)
        return [line for line in lines if "t" in line]
