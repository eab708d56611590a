"""``forkjoin bench grouped``: attention of a decoding step with and without groups.

On a GPU each load is measured: one pass with the rows as they come, one pass with siblings side by side, and
two passes. Anywhere else the command prints what is read, and what that is expected to take.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from itertools import product
from typing import Any

from forkjoin_bench.arguments import check_at_least
from forkjoin_bench.grouped.estimate import Estimate, Geometry, Load, estimate
from forkjoin_bench.host import host_facts
from forkjoin_bench.progress import working
from forkjoin_bench.results import add_out, write_json
from forkjoin_bench.tables import table

FAMILIES, WIDTHS, PREFIXES = (1, 4, 16, 64), (2, 8, 32), (1024, 4096, 16384, 65536)
READ = ("families", "threads each", "prefix", "KV tokens read", "grouped", "times fewer")
EXPECTED = ("expected ms", "with L2", "grouped")
MEASURED = ("measured ms", "side by side", "grouped", "off by")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which loads there are."""
    for flag, default, what in (
        ("--families", FAMILIES, "Numbers of families that decode."),
        ("--widths", WIDTHS, "Numbers of threads of a family."),
        ("--prefixes", PREFIXES, "Tokens that the threads of a family share."),
    ):
        parser.add_argument(
            flag,
            type=int,
            nargs="+",
            default=default,
            metavar="N",
            help=f"{what} Default: {' '.join(map(str, default))}.",
        )
    add_out(parser)


def main(args: argparse.Namespace) -> None:
    """Print a table, and write the numbers to a file."""
    check_at_least(
        ("--families", min(args.families), 1),
        ("--widths", min(args.widths), 1),
        ("--prefixes", min(args.prefixes), 0),
    )
    geometry = Geometry()
    loads = [Load(*load) for load in product(args.families, args.widths, args.prefixes)]
    measure = _measure()
    rows = []
    with working("loads", len(loads)) as work:
        for load in loads:
            rows.append((load, estimate(load, geometry), measure and measure(load, geometry)))
            work.done()
    print(markdown(rows, geometry))
    facts = {"command": args.command, "host": host_facts(), "geometry": asdict(geometry)}
    results = [
        {"load": asdict(load), "expected": asdict(expected), "measured": measured and asdict(measured)}
        for load, expected, measured in rows
    ]
    print(f"\nwritten: {write_json(args.out, 'grouped', facts | {'results': results})}")


def markdown(rows: list[tuple[Load, Estimate, Any]], geometry: Geometry) -> str:
    """The table; with measured columns only if something was measured."""
    is_measured = any(measured is not None for _, _, measured in rows)
    lines = []
    for load, expected, measured in rows:
        once = load.grouped(geometry.block_size)
        line = [load.families, load.width, f"{load.prefix:,}", f"{load.ungrouped:,}", f"{once:,}"]
        line += [f"{load.ungrouped / once:.2f}"]
        line += [f"{ms:.2f}" for ms in (expected.ungrouped, expected.cached, expected.grouped)]
        if is_measured:
            line += _cells(measured)
        lines.append(line)
    return table((*READ, *EXPECTED, *(MEASURED if is_measured else ())), lines)


def _cells(measured: Any) -> list[str]:
    if measured is None:
        return ["–"] * len(MEASURED)
    ms = (measured.mixed_ms, measured.ordered_ms, measured.grouped_ms)
    return [*(f"{each:.2f}" for each in ms), f"{measured.off_by:.1e}"]


def _measure() -> Any:
    """What measures a load on this machine's GPU; None without one."""
    from forkjoin_bench.vllm_seam.grouped_attention import has_gpu, measure

    return measure if has_gpu() else None
