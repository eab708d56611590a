"""Trees in files: JSON lines, one a tree, and Parquet, one row a segment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any


def append_line(path: str | Path, tree: dict[str, Any]) -> None:
    """Append ``tree`` to the file at ``path``."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(tree, separators=(",", ":")) + "\n")


def lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """What each line of the file at ``path`` holds."""
    with Path(path).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_parquet(path: str | Path, trees: list[dict[str, Any]]) -> None:
    """Write ``trees`` to a new file at ``path``. Raises ImportError without pyarrow."""
    try:
        pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            "to_parquet: expected the package pyarrow, found none: pip install pyarrow, or use to_jsonl"
        ) from error
    pq.write_table(pa.Table.from_pylist(rows(trees), schema=_schema(pa)), str(path))


def rows(trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a segment: the number of its ``tree``, its own as ``segment``, and its fields.

    What is of a whole tree stands in the row of its first segment.
    """
    found = []
    for tree_number, tree in enumerate(trees):
        for number, fields in enumerate(tree["segments"]):
            of_tree = {"answer_ids": tree["answer_ids"], "voted": tree["voted"]} if not number else {}
            top = fields["top_logprobs"]
            if top is not None:  # Parquet's maps are lists of pairs
                top = [list(row.items()) for row in top]
            row = fields | {"top_logprobs": top} | of_tree
            found.append({"tree": tree_number, "segment": number} | row)
    return found


def _schema(pa: Any) -> Any:
    int64, text, number = pa.int64(), pa.string(), pa.float64()
    joined = pa.struct([("segment", int64), ("num_tokens", int64), ("num_skipped", int64)])
    return pa.schema(
        [
            *((name, int64) for name in ("tree", "segment", "thread")),
            ("token_ids", pa.list_(int64)),
            *((name, int64) for name in ("num_injected", "position", "parent", "fork_offset", "forked_by")),
            ("joined", pa.list_(joined)),
            ("logprobs", pa.list_(number)),
            ("top_logprobs", pa.list_(pa.map_(int64, number))),
            ("seed", int64),
            *((name, text) for name in ("finish_reason", "title", "weight_version")),
            ("has_old_kv", pa.bool_()),
            ("answer_ids", pa.list_(int64)),
            ("voted", int64),
        ]
    )
