"""The notebook that trains the embedded model on its own trees: it runs, and the critical path falls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/rl_on_trees/rl_on_trees.ipynb"
#: Fewer rounds than the notebook has, and prompts to measure with, for time's sake.
SHORT = {"rounds": 6, "measured": 60}
#: Minutes on two free cores; where others use them too, 15 have not been enough.
LIMIT_S = 1800
EMBEDDED, START, AFTER = "embedded model", "start policy", "after learning"


@pytest.mark.server
@pytest.mark.timeout(1860)
def test_the_notebook_runs_and_the_critical_path_falls_while_answers_stay_right():
    env = os.environ | {"RECIPE": json.dumps(SHORT), "MPLBACKEND": "agg"}
    program = ROOT / "tests/server/rl_on_trees_run.py"
    done = subprocess.run(
        [sys.executable, program, NOTEBOOK],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    seen = json.loads(line.removeprefix("SEEN "))
    _learns(seen["measured"])
    assert len(seen["rounds"]) == SHORT["rounds"]
    differences = [
        r["difference"] for r in seen["rounds"]
    ]  # 0 where all answers to each prompt earn the same
    assert 0 < max(differences) < 1e-3, "trainer and engine compute the same"
    assert all(own == engine for own, engine, _ in seen["paths"]), (
        "critical paths are as the engine counts them"
    )
    assert any(forks for *_, forks in seen["paths"])


def _learns(measured):
    """The critical path falls by more than noise, since more answers fork; as many are right, but for noise."""
    start, after = measured[START], measured[AFTER]
    assert measured[EMBEDDED]["forks"] == 1, "there is nothing to learn before the start policy"
    noise = 3 * (start["steps_error"] ** 2 + after["steps_error"] ** 2) ** 0.5
    assert after["steps"] < start["steps"] - noise
    assert after["forks"] > start["forks"] + 0.2
    error = 3 * (start["right_error"] ** 2 + after["right_error"] ** 2) ** 0.5
    assert after["right"] >= start["right"] - error


MEASURED = re.compile(
    r"^(?P<name>embedded model|start policy|after learning): (?P<right>\S+)% ± (?P<right_error>\S+)% right, "
    r"(?P<forks>\S+)% fork, critical path (?P<steps>\S+) ± (?P<steps_error>\S+) steps, \S+ tokens$",
    flags=re.M,
)


def test_the_notebook_is_kept_as_a_run_left_it():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    said = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    measured = {}
    for found in MEASURED.finditer(said):
        shares = {name: float(found[name]) / 100 for name in ("right", "right_error", "forks")}
        steps = {name: float(found[name]) for name in ("steps", "steps_error")}
        measured[found["name"]] = shares | steps
    _learns(measured)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert NOTEBOOK.stat().st_size < 60_000
