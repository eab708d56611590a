"""What ``forkjoin verify`` makes of what its processes hand over; test_verify of tests/server starts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forkjoin_scheduler.errors import UsageError
from forkjoin_server.cli import main as cli
from forkjoin_server.verify import command
from forkjoin_server.verify.processes import Ended

SEEN = {
    "model": "m", "dtype": "float32", "cache_dtype": "auto", "block_size": 16, "async_scheduling": False,
    "cudagraph_mode": "NONE", "own": [[-1.0]] * 4, "plain": [[[-1.0, -1.0]]] * 4,
    "thread_unseen": [[-3.0, -1.0]],
}  # fmt: skip
JOIN_NAMES = ("re-prefill join", "stitched join")
CONTROLS = ("positions_wrong", "mask_wrong", "thread_unseen")
MASKED = {"right": [[-1.0, -1.0]], **{control: [[-3.0, -1.0]] for control in CONTROLS}}
TENSORS = {"ok": True, "facts": {"device": "cpu"}, "results": []}


@pytest.fixture
def machine(monkeypatch):
    """What each process writes (None: nothing), and the last line of what it complains of."""
    state = {"seen": SEEN, "masked": MASKED, "tensors": TENSORS, "complaint": "", "calls": []}

    def run(what, module, argv):
        state["calls"].append(argv)
        kind = module.rpartition(".")[2]
        name = {"verify": "tensors", "engine_case": "seen", "masked": "masked"}[kind]
        out = {"tensors": argv[-1], "seen": argv[0], "masked": argv[1]}[name]
        if state[name] is not None:
            Path(out).write_text(json.dumps(state[name]))
        return Ended(state["complaint"], "Traceback …")

    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "_vllm_version", lambda: "0.32.0")
    return state


def report(tmp_path, *flags):
    return command.verify(list(flags), tmp_path).as_dict()


def verdicts(found):
    return {(r["operation"], r["ok"]) for r in found["results"]}


def test_all_is_well_where_every_process_agrees(machine, tmp_path):
    found = report(tmp_path)
    assert found["ok"]
    names = " ".join(r["operation"] for r in found["results"])
    assert "re-prefill join, eager: threads" in names
    assert "stitched join, eager: after it: control" in names
    assert found["facts"] | {"dtype": "float32", "flags": "none", "vllm": "0.32.0"} == found["facts"]


def test_the_users_flags_win_and_each_engine_has_its_kind_of_join(machine, tmp_path):
    report(tmp_path, "MODEL", "--max-model-len=4096")
    engines = [argv for argv in machine["calls"] if "--dialect" in argv]
    assert [Path(argv[-1]).stem for argv in engines] == ["reprefill", "stitch"]
    for argv in engines:
        assert argv[1] == "MODEL"
        assert argv.index("--max-model-len=4096") > argv.index("--max-model-len=1024")


@pytest.fixture
def gpu(machine):
    machine["tensors"] = TENSORS | {"facts": {"device": "cuda", "gpu": "H200"}}
    machine["seen"] = SEEN | {"cudagraph_mode": "FULL_AND_PIECEWISE"}
    return machine


def test_on_a_gpu_engines_run_with_graphs_and_without(gpu, tmp_path):
    machine, found = gpu, report(tmp_path)
    engines = [argv for argv in machine["calls"] if "--dialect" in argv]
    assert ["--enforce-eager" in argv for argv in engines] == [False, True] * 2
    assert any("graphs" in operation for operation, _ in verdicts(found))


def test_an_engine_that_captures_no_graph_is_not_taken_for_one_that_does(gpu, tmp_path):
    gpu["seen"] = SEEN
    found = report(tmp_path, "--compilation-config={}")
    (result,) = [r for r in found["results"] if r["operation"] == "stitched join, graphs"]
    assert "capture no graph" in result["note"]
    assert not any("graphs: threads" in r["operation"].replace("no graphs", "") for r in found["results"])
    report(tmp_path, "--enforce-eager")
    engines = [argv for argv in gpu["calls"] if "--dialect" in argv][4:]
    assert [argv.count("--enforce-eager") for argv in engines] == [2, 2]


def test_a_thread_that_differs_from_its_plain_request_fails(machine, tmp_path):
    machine["seen"] = SEEN | {"own": [[-1.0], [-1.5], [-1.0], [-1.0]]}
    found = report(tmp_path)
    assert not found["ok"]
    assert ("stitched join, eager: threads: log-probabilities", False) in verdicts(found)


def test_what_follows_a_stitched_join_is_judged_by_the_masked_pass_alone(machine, tmp_path):
    machine["seen"] = SEEN | {"plain": [[[-1.0, -1.0]]] * 3 + [[[-9.0, -9.0]]]}
    failed = {operation for operation, ok in verdicts(report(tmp_path)) if not ok}
    name = "re-prefill join, eager: after it: log-probabilities"
    assert failed == {name, f"{name}, mean"}
    machine["seen"], machine["masked"] = SEEN, MASKED | {"right": [[-9.0, -9.0]]}
    failed = {operation for operation, ok in verdicts(report(tmp_path / "..")) if not ok}
    name = "stitched join, eager: after it: log-probabilities"
    assert failed == {name, f"{name}, mean"}


def test_a_control_that_does_not_differ_is_told_as_not_run(machine, tmp_path):
    machine["masked"] = MASKED | {"mask_wrong": MASKED["right"]}
    found = report(tmp_path)
    (result,) = [r for r in found["results"] if "would not show" in r["note"]]
    assert found["ok"]
    assert result["difference"] is None


BRITTLE = {
    "own": [[-1.0, -1.0, -1.0]] * 4,
    "plain": [[[-1.0, -1.0], [-1.0, -1.0], [-9.0, -1.0]]] * 4,
    "thread_unseen": [[-3.0, -1.0]] * 3,
}
LIKELY = [[-1.0, -1.0], [-1.0, -1.0], [-9.0, -1.0]]
EXACT = [[-1.0, -1.0], [-1.0, -1.0], [-2.0, -1.0]]
PASSES = {"right": LIKELY, "unrounded": EXACT, "threads": [LIKELY] * 3, "threads_unrounded": [EXACT] * 3}
PASSES |= {control: [[-3.0, -1.0]] * 3 for control in CONTROLS}


def test_a_token_that_rounding_moves_in_the_reference_too_is_not_judged(machine, tmp_path):
    machine["seen"], machine["masked"] = SEEN | BRITTLE | {"dtype": "bfloat16"}, PASSES
    found = report(tmp_path)
    assert found["ok"]
    cases = {r["case"] for r in found["results"] if r["operation"].endswith("greedy tokens")}
    assert all("but for 1 tokens that rounding moves" in case for case in cases)
    machine["seen"] = SEEN | BRITTLE  # in fp32 nothing is let off
    assert not report(tmp_path)["ok"]


def test_a_token_that_is_wrong_where_the_reference_is_sure_has_failed(machine, tmp_path):
    machine["seen"] = SEEN | BRITTLE | {"dtype": "bfloat16"}
    machine["masked"] = PASSES | {"unrounded": LIKELY, "threads_unrounded": [LIKELY] * 3}
    failed = {operation for operation, ok in verdicts(report(tmp_path)) if not ok}
    assert "re-prefill join, eager: threads: log-probabilities" in failed
    assert "stitched join, eager: after it: greedy tokens" in failed


def test_where_rounding_moves_most_tokens_nothing_is_said(machine, tmp_path):
    exact = [[-2.0, -1.0]] * 3
    machine["seen"] = SEEN | BRITTLE | {"dtype": "bfloat16"}
    machine["masked"] = PASSES | {"unrounded": exact, "threads_unrounded": [exact] * 3}
    found = report(tmp_path)
    told = [r for r in found["results"] if "take --dtype float32" in r["note"]]
    assert {r["operation"] for r in told} == {
        f"{join}, eager: {part}" for join in JOIN_NAMES for part in ("threads", "after it")
    }
    assert all(r["difference"] is None for r in told)


def test_a_re_prefill_join_has_a_control_too(machine, tmp_path):
    name = "re-prefill join, eager: after it: control, thread unseen"
    (result,) = [r for r in report(tmp_path)["results"] if r["operation"] == name]
    assert (result["difference"], result["note"]) == (0, "")
    machine["seen"] = SEEN | {"thread_unseen": [[-1.0, -1.0]]}
    (result,) = [r for r in report(tmp_path)["results"] if r["operation"] == name]
    assert "would not show" in result["note"]


def test_a_join_that_the_engine_refuses_is_told_and_is_no_failure(machine, tmp_path):
    machine |= {"seen": None, "complaint": "UnsupportedEngine: the stitched join expects X"}
    found = report(tmp_path)
    assert found["ok"]
    assert all("the stitched join expects X" in r["note"] for r in found["results"])


@pytest.mark.parametrize("process", ["seen", "tensors"])
def test_a_process_that_dies_has_failed_with_its_last_line(machine, tmp_path, process):
    machine |= {process: None, "complaint": "CUDA error: an illegal memory access"}
    found = report(tmp_path)
    assert not found["ok"]
    assert any("illegal memory access" in r["note"] for r in found["results"])
    assert "Traceback …" in found["logs"].values()


def test_the_report_is_printed_and_written_and_a_failure_is_the_exit_status(machine, tmp_path, capsys):
    file = tmp_path / "report.json"
    with pytest.raises(SystemExit, match="0"):
        cli(["verify", "--json", str(file)])
    assert "all within their bounds" in capsys.readouterr().out
    assert json.loads(file.read_text())["ok"] is True
    machine["seen"] = None
    with pytest.raises(SystemExit, match="1"):
        cli(["verify", f"--json={file}"])
    assert json.loads(file.read_text())["ok"] is False


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--json"], "got no file"),
        (["--json", "--dtype"], "got no file"),
        (["--dialect=npr"], "no --dialect"),
        (["--json", "no_such_folder/report.json"], "can be written, got no_such_folder"),
    ],
)
def test_flags_that_can_not_be_are_refused(argv, complaint):
    with pytest.raises(UsageError, match=complaint):
        command.main(argv)
