"""``forkjoin verify`` on the embedded model: three processes, two of them with an engine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.server

JOINS = ("re-prefill join", "stitched join")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forks_and_both_joins_of_the_embedded_model_are_within_their_bounds(dtype, tmp_path):
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "forkjoin_server.cli", "verify", f"--dtype={dtype}", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "all within their bounds" in done.stdout
    report = json.loads(file.read_text())
    ran = {r["operation"] for r in report["results"] if r["difference"] is not None}
    for join in JOINS:
        for part in ("threads", "after it"):
            for judged in ("log-probabilities", "greedy tokens"):
                assert f"{join}, eager: {part}: {judged}" in ran
    # with wrong positions, a wrong mask or a thread less, what follows a join would be out of bounds
    controls = [r for r in report["results"] if ": control, " in r["operation"]]
    assert [r["difference"] for r in controls] == [0] * 4
    assert report["facts"]["dtype"] == dtype
