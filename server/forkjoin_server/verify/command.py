"""``forkjoin verify [MODEL] [--json FILE] [flags of serve]``: what runs, in which order, and the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.excerpt import cut
from forkjoin_scheduler.verify.result import Result, not_run, table
from forkjoin_server.verify.judging import bound_of, judge
from forkjoin_server.verify.transcript import dialect_file

#: Enough for the prompt and all threads. A flag of the user's wins over it.
DEFAULT_FLAGS = ("--max-model-len=1024", "--max-num-seqs=16")
#: By the kind of join; how results name it.
JOINS = {"reprefill": "re-prefill join", "stitch": "stitched join"}
TIMEOUT_S = 1800


def main(argv: list[str]) -> int:
    """Verify, and print a report. Returns the exit status. Raises UsageError for flags that can't be."""
    flags, json_file = _without_json(argv)
    if any(flag.partition("=")[0] == "--dialect" for flag in flags):
        raise UsageError("verify: expected no --dialect, for it brings one that forks any model: drop it")
    with tempfile.TemporaryDirectory() as name:
        report = verify(flags, Path(name))
    results = [Result(**{k: v for k, v in r.items() if k != "ok"}) for r in report["results"]]
    print("\n".join(f"{name}: {value}" for name, value in report["facts"].items()))
    print(table(results))
    failed = [r for r in results if not r.ok]
    print(f"{len(results)} cases: " + (f"{len(failed)} FAILED" if failed else "all within their bounds"))
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failed else 0


def verify(flags: list[str], folder: Path) -> dict[str, Any]:
    """The whole report; ``folder`` holds what the processes hand over."""
    facts, results = _tensors(folder)
    facts = {"vllm-forkjoin": version("vllm-forkjoin"), "vllm": _vllm_version()} | facts
    facts["flags"] = " ".join(flags) or "none"
    # On CPUs no graph is captured, and compiling takes minutes.
    modes = (
        {"graphs": [], "eager": ["--enforce-eager"]} if facts.get("gpu") else {"eager": ["--enforce-eager"]}
    )
    for join in JOINS:
        for mode, more in modes.items():
            results += _engine(join, mode, [*flags, *more], folder, facts)
    return {
        "ok": all(r.ok for r in results),
        "facts": facts,
        "results": [r.as_dict() for r in results],
    }


def _tensors(folder: Path) -> tuple[dict[str, str], list[Result]]:
    out = folder / "tensors.json"
    problem = _run("forkjoin_scheduler.verify", ["--json", str(out)])
    if not out.exists():
        return {}, [_failed("tensor operations", problem)]
    told = json.loads(out.read_text())
    results = [Result(**{k: v for k, v in r.items() if k != "ok"}) for r in told["results"]]
    return told["facts"], results


def _engine(join: str, mode: str, flags: list[str], folder: Path, facts: dict[str, str]) -> list[Result]:
    """What an engine with this kind of join computes, against plain requests and a masked pass."""
    name, dialect, seen_file = JOINS[join], folder / f"{join}.yaml", folder / f"{join}-{mode}.json"
    dialect.write_text(dialect_file(join))
    model = [flags[0]] if flags and not flags[0].startswith("-") else []
    line = [str(seen_file), *model, *DEFAULT_FLAGS, *flags[len(model) :], "--dialect", str(dialect)]
    problem = _run("forkjoin_server.vllm_seam.verify.engine_case", line)
    if not seen_file.exists():
        is_refused = "UnsupportedEngine" in problem
        return [not_run(f"{name}, {mode}", problem) if is_refused else _failed(f"{name}, {mode}", problem)]
    seen = json.loads(seen_file.read_text())
    kept = ("model", "dtype", "cache_dtype", "block_size", "async_scheduling")
    facts |= {key: str(seen[key]) for key in kept}
    if mode == "graphs":
        facts["cudagraph_mode"] = seen["cudagraph_mode"]
    dtype, bound = seen["dtype"], bound_of(seen["dtype"], seen["cache_dtype"])
    results = []
    *threads, after = zip(seen["own"], seen["plain"], strict=True)
    for n, (own, said) in enumerate(threads, 1):
        results += judge(f"{name}, {mode}: threads", f"thread {n}, a plain request", dtype, bound, own, said)
    if join == "reprefill":
        return results + judge(f"{name}, {mode}: after it", "a plain request", dtype, bound, *after)
    return results + _masked(f"{name}, {mode}: after it", seen, seen_file, bound, after[0])


def _masked(name: str, seen: dict[str, Any], seen_file: Path, bound: float, own: list[float]) -> list[Result]:
    out = seen_file.with_suffix(".masked.json")
    problem = _run("forkjoin_server.vllm_seam.verify.masked", [str(seen_file), str(out)])
    if not out.exists():
        return [not_run(name, f"transformers can't be the reference: {problem}")]
    told = json.loads(out.read_text())
    results = judge(name, "transformers with positions and mask", seen["dtype"], bound, own, told["right"])
    for control in ("positions_wrong", "mask_wrong"):
        apart = max(abs(mine - likely) for mine, (likely, _) in zip(own, told[control], strict=True))
        case = f"control, {control.replace('_', ' ')}: {apart:.3g} nats apart"
        if apart > bound:
            results.append(Result(f"{name}: control", case, seen["dtype"], 0, 0))
        else:
            results.append(not_run(f"{name}: control", f"{case}, so this model would not show that"))
    return results


def _failed(name: str, problem: str) -> Result:
    return Result(name, "", "", float("inf"), 0, problem or "ended without a result")


def _run(module: str, argv: list[str]) -> str:
    """Run ``module`` in a process of its own; the last line of what it complained of."""
    print(f"forkjoin: runs {module} …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", module, *argv]
    try:
        done = subprocess.run(  # noqa: S603
            command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not over after {TIMEOUT_S} s"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if "UnsupportedEngine" in line), lines[-1] if lines else "")
    return cut(told, 500) or f"exit status {done.returncode}"


def _vllm_version() -> str:
    from forkjoin_server.vllm_seam.start.versions import check_version

    return str(check_version()[0])


def _without_json(argv: list[str]) -> tuple[list[str], Path | None]:
    """``argv`` without ``--json FILE``, and the file. Raises UsageError where the file is missing."""
    argv = [part for a in argv for part in (a.split("=", 1) if a.startswith("--json=") else [a])]
    if "--json" not in argv:
        return argv, None
    at = argv.index("--json")
    if at == len(argv) - 1 or argv[at + 1].startswith("-"):
        raise UsageError("verify: expected --json FILE, got no file")
    return argv[:at] + argv[at + 2 :], Path(argv[at + 1])
