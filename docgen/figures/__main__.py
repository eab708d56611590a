"""``python -m docgen.figures [NAME …] [--out FOLDER]``: draw the docs' figures, for light and dark pages."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from docgen.figures import admission, blocks, joins, pressure, request_path, scripts
from forkjoin.terminal.drawing import DARK, LIGHT, Theme

Drawn = Callable[[Path, Theme], None]


def _joins() -> Drawn:
    runs = {kind: joins.record(script) for kind, script in joins.KINDS.items()}
    return lambda path, theme: joins.draw(runs, path, theme)


def _blocks() -> Drawn:
    tables = blocks.record(scripts.REPREFILL), blocks.record(scripts.STITCH)
    return lambda path, theme: blocks.draw(*tables, path, theme)


def _admission() -> Drawn:
    runs = {f"--admission {name}": pressure.run(name) for name in ("family", "greedy")}
    return lambda path, theme: admission.draw(runs, path, theme)


def _request_path() -> Drawn:
    return request_path.draw


#: What records the run of each figure, and returns what draws it.
FIGURES: dict[str, Callable[[], Drawn]] = {
    "joins": _joins,
    "kv-blocks": _blocks,
    "admission": _admission,
    "request-path": _request_path,
}


def main(argv: list[str] | None = None) -> None:
    """Draw the figures that ``argv`` names, or all."""
    parser = argparse.ArgumentParser(prog="python -m docgen.figures", description="Draw figures of the docs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(FIGURES)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER", help="(default: docs)")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(FIGURES):
        parser.error(f"expected {', '.join(FIGURES)}, got {', '.join(sorted(unknown))}")
    for name in args.names or FIGURES:
        drawn = FIGURES[name]()
        for suffix, theme in (("", LIGHT), ("-dark", DARK)):
            path = args.out / f"{name}{suffix}.svg"
            drawn(path, theme)
            print(f"written: {path}")


if __name__ == "__main__":
    main()
