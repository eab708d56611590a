"""Two systems, really run on the embedded model: this server, and the client loop in process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SYSTEMS = ("forkjoin", "client-inproc")


@pytest.mark.server
def test_two_systems_write_the_same_tokens_and_are_counted(tmp_path):
    command = [sys.executable, "-m", "forkjoin_bench", "run", "--scenario", "smoke", "--rounds", "1"]
    command += ["--systems", *SYSTEMS, "--out", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "embedded.json").read_text())
    ours, theirs = (next(r for r in result["runs"] if r["system"] == name) for name in SYSTEMS)
    assert (ours["errors"], theirs["errors"]) == ([], [])
    assert ours["values"]["prefilled_prompt"] == theirs["values"]["prefilled_prompt"] == 40
    assert ours["values"]["prefilled_header"] == 24
    assert ours["values"]["fork_steps_max"] == 1
    assert ours["values"]["prefilled_tail"] == ours["values"]["prefilled_recomputed"] == 0
    assert 0 < ours["values"]["prefilled"] < theirs["values"]["prefilled"]
    assert (tmp_path / "embedded.md").exists()
