"""``forkjoin verify [MODEL] [--json FILE] [flags of serve]``: what runs, in which order, and the report."""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.verify.result import Result, is_writable, not_run, summary, table
from forkjoin_server.verify.judging import Bound, Likely, apart, bound_of, judge, sure
from forkjoin_server.verify.processes import run
from forkjoin_server.verify.report import Report
from forkjoin_server.verify.transcript import dialect_file

#: Enough for the prompt and all threads. A user's flag overrides it.
DEFAULT_FLAGS = ("--max-model-len=1024", "--max-num-seqs=16")
#: By the kind of join; how results name it.
JOINS = {"reprefill": "re-prefill join", "stitch": "stitched join"}
#: Whether an engine captures CUDA graphs: the flags that say so.
GRAPHS, EAGER = "graphs", "eager"
MODES: dict[str, list[str]] = {GRAPHS: [], EAGER: ["--enforce-eager"]}


def main(argv: list[str]) -> int:
    """Verify, and print a report. Returns the exit status. Raises UsageError for flags that can't be."""
    flags, json_file = _without_json(argv)
    if any(flag.partition("=")[0] == "--dialect" for flag in flags):
        raise UsageError("verify: expected no --dialect, for it brings one that forks any model: drop it")
    if json_file is not None and not is_writable(json_file):
        raise UsageError(f"verify: expected --json FILE in a folder that can be written, got {json_file}")
    with tempfile.TemporaryDirectory() as name:
        report = verify(flags, Path(name))
    print("\n".join(f"{name}: {value}" for name, value in report.facts.items()))
    print(table(report.results))
    print(summary(report.results))
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    return 0 if all(r.ok for r in report.results) else 1


def verify(flags: list[str], folder: Path) -> Report:
    """The whole report; ``folder`` holds what the processes hand over."""
    report = Report({"vllm-forkjoin": version("vllm-forkjoin"), "vllm": _vllm_version()})
    _tensors(folder, report)
    report.facts["flags"] = " ".join(flags) or "none"
    # On CPUs no graph is captured, and compiling takes minutes.
    has_graphs = "gpu" in report.facts and "--enforce-eager" not in flags
    for join in JOINS:
        for mode in MODES if has_graphs else (EAGER,):
            _engine(join, mode, flags, folder, report)
    return report


def _tensors(folder: Path, report: Report) -> None:
    out = folder / "tensors.json"
    ended = run("tensor operations", "forkjoin_scheduler.verify", ["--json", str(out)])
    if not out.exists():
        report.failed("tensor operations", ended)
        return
    told = json.loads(out.read_text())
    report.facts |= told["facts"]
    report.results += [Result(**{k: v for k, v in r.items() if k != "ok"}) for r in told["results"]]


def _engine(join: str, mode: str, flags: list[str], folder: Path, report: Report) -> None:
    """What an engine with this kind of join computes, against plain requests and a masked pass."""
    name, dialect, seen_file = JOINS[join], folder / f"{join}.yaml", folder / f"{join}-{mode}.json"
    dialect.write_text(dialect_file(join))
    model = [flags[0]] if flags and not flags[0].startswith("-") else []
    others = [*flags[len(model) :], *MODES[mode]]
    line = [str(seen_file), *model, *DEFAULT_FLAGS, *others, "--dialect", str(dialect)]
    ended = run(f"{name}, {mode}", "forkjoin_server.vllm_seam.verify.engine_case", line)
    if not seen_file.exists():
        (report.not_run if ended.is_refused else report.failed)(f"{name}, {mode}", ended)
        return
    seen = json.loads(seen_file.read_text())
    kept = ("model", "dtype", "cache_dtype", "block_size", "async_scheduling")
    report.facts |= {key: str(seen[key]) for key in kept}
    if mode == GRAPHS:
        report.facts["cudagraph_mode"] = seen["cudagraph_mode"]
        if seen["cudagraph_mode"] == "NONE":
            report.results.append(not_run(f"{name}, graphs", "these flags, or this model, capture no graph"))
            mode = "no graphs"
    _judge(f"{name}, {mode}", join, seen, seen_file, report)


def _judge(name: str, join: str, seen: dict[str, Any], seen_file: Path, report: Report) -> None:
    """Compare what an engine computed with plain requests, and with transformers' passes."""
    dtype, bound = seen["dtype"], bound_of(seen["dtype"], seen["cache_dtype"])
    after = f"{name}: after it"
    passes = _passes(after, join, seen, seen_file, report)
    *threads, rest = zip(seen["own"], seen["plain"], strict=True)
    rounded, exact = (passes.get(name, [None] * len(threads)) for name in ("threads", "threads_unrounded"))
    for n, (own, said) in enumerate(threads):
        kept = sure(len(own), rounded[n], exact[n], bound)
        case = f"thread {n + 1}, a plain request"
        report.results += _judge_sure(f"{name}: threads", case, dtype, bound, own, said, kept)
    own, said = rest
    controls = ["thread_unseen"]
    if join == "stitch":
        if not passes:
            return
        said, controls = passes["right"], ["positions_wrong", "mask_wrong", "thread_unseen"]
    case = "transformers with positions and mask" if join == "stitch" else "a plain request"
    kept = sure(len(own), passes.get("right"), passes.get("unrounded"), bound)
    report.results += _judge_sure(after, case, dtype, bound, own, said, kept)
    for control in controls:
        unlike = (passes if join == "stitch" else seen)[control]
        if kept and len(unlike) == len(own):
            report.results.append(
                _control(after, control, dtype, bound, [own[i] for i in kept], [unlike[i] for i in kept])
            )


def _passes(name: str, join: str, seen: dict[str, Any], seen_file: Path, report: Report) -> dict[str, Any]:
    """What transformers' passes say; nothing where it can't, or isn't needed."""
    if join != "stitch" and seen["dtype"] == "float32":
        return {}
    out = seen_file.with_suffix(".masked.json")
    ended = run(name, "forkjoin_server.vllm_seam.verify.masked", [str(seen_file), str(out), join])
    if out.exists():
        return dict(json.loads(out.read_text()))
    if join == "stitch":
        report.not_run(name, ended, "transformers can't be the reference: ")
    return {}


def _judge_sure(
    name: str, case: str, dtype: str, bound: Bound, own: list[float], said: list[Likely], kept: list[int]
) -> list[Result]:
    """As ``judge``, of the tokens at ``kept``. Half of them at least: else nothing can be said."""
    if len(said) != len(own):
        return judge(name, case, dtype, bound, own, said)
    num_moved = len(own) - len(kept)
    if 2 * num_moved > len(own):
        why = f"{case}: rounding moves {num_moved} of {len(own)} tokens in transformers: take --dtype float32"
        return [not_run(name, why)]
    if num_moved:
        case += f", but for {num_moved} tokens that rounding moves in transformers, too"
    return judge(name, case, dtype, bound, [own[i] for i in kept], [said[i] for i in kept])


def _control(
    name: str, control: str, dtype: str, bound: Bound, own: list[float], said: list[Likely]
) -> Result:
    """Whether an error of this kind would be out of the bound, and so be noticed."""
    difference = apart(own, said)
    operation = f"{name}: control, {control.replace('_', ' ')}"
    case = f"{difference.largest:.3g} nats apart, {difference.mean:.3g} on average"
    if not bound.is_kept(difference):
        return Result(operation, case, dtype, 0, 0)
    return not_run(operation, f"{case}, so this model would not show that")


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
