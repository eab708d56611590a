"""Runs all checks on a device and prints a report; exits with 1 if an operation is wrong."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from forkjoin_scheduler.verify import copies, graphs, rotation, streams
from forkjoin_scheduler.verify.device import facts, use_device
from forkjoin_scheduler.verify.result import Result, is_writable, summary, table

#: A device's part of the verification.
Check = Callable[[torch.device], Iterable[Result]]
CHECKS: tuple[Check, ...] = (copies.check, rotation.check, graphs.check, streams.check)


def run(device: torch.device, checks: Iterable[Check] = CHECKS) -> list[Result]:
    """All results on ``device``. What raises is a result that failed: the others still count."""
    results: list[Result] = []
    for check in checks:
        try:
            results += check(device)
        except Exception as error:  # of whatever kind a device's libraries raise
            name = f"{check.__module__.rpartition('.')[2]} (raised)"
            told = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            results.append(Result(name, "", "", float("inf"), 0, told))
    return results


def main(argv: list[str] | None = None) -> int:
    """Run ``argv`` (default: the process's own) and print the report. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m forkjoin_scheduler.verify",
        description="Compare tensor operations on a device with plain ones on the CPU.",
    )
    parser.add_argument("--device", help="default: cuda if torch sees a GPU, else cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all cases there")
    args = parser.parse_args(argv)
    if args.json and not is_writable(args.json):
        print(f"--json: expected a file in a folder that can be written, got {args.json}", file=sys.stderr)
        return 2
    try:
        device = use_device(args.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        print(
            f"--device: expected a device that torch can use, got {args.device or 'cuda'}: {reason}",
            file=sys.stderr,
        )
        return 2
    start = time.monotonic()
    results = run(device)
    is_well = all(result.ok for result in results)
    seen = facts(device)
    print("\n".join(f"{name}: {value}" for name, value in seen.items()))
    print(table(results))
    print(f"{summary(results)} ({time.monotonic() - start:.0f} s)")
    if args.json:
        report = {"ok": is_well, "facts": seen, "results": [r.as_dict() for r in results]}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if is_well else 1


if __name__ == "__main__":
    raise SystemExit(main())
