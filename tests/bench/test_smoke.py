"""Systems, really run on the embedded model: this server, the client loop in process, and a stock server."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SYSTEMS = ("forkjoin", "client-inproc")


def runs(scenario, systems, folder):
    """What was measured of each of ``systems``, all of whose answers are right."""
    command = [sys.executable, "-m", "forkjoin_bench", "run", "--scenario", scenario, "--quick"]
    command += ["--rounds", "1", "--systems", *systems, "--out", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((folder / "embedded.json").read_text())
    found = [next(run for run in result["runs"] if run["system"] == name) for name in systems]
    assert [run["errors"] for run in found] == [[]] * len(systems)
    return found


@pytest.mark.server
def test_two_systems_write_the_same_tokens_and_are_counted(tmp_path):
    ours, theirs = runs("smoke", SYSTEMS, tmp_path)
    assert ours["values"]["prefilled_prompt"] == theirs["values"]["prefilled_prompt"] == 40
    assert ours["values"]["prefilled_header"] == 24
    assert ours["values"]["fork_steps_max"] == 1
    assert ours["values"]["prefilled_tail"] == ours["values"]["prefilled_recomputed"] == 0
    assert 0 < ours["values"]["prefilled"] < theirs["values"]["prefilled"]
    assert (tmp_path / "embedded.md").exists()


@pytest.mark.server
def test_samples_of_a_group_differ_and_share_only_their_prompt_however_they_are_asked_for(tmp_path):
    systems = ("forkjoin", "forkjoin-n", "client-http", "sequential", "sequential-n")
    found = [run["values"] for run in runs("group", systems, tmp_path)]
    prompt, rest = 400, 400 % 32  # the last, partial block is computed for each of four
    assert {values["prefilled_prompt"] for values in found} == {prompt + 3 * (rest or 32)}
    ours, in_one, loop, *sequential = found
    assert ours["prefilled_join"] == in_one["prefilled_join"] > 0
    assert loop["prefilled_join"] >= ours["prefilled_join"]  # of texts that differ none is in the cache
    assert [values["prefilled"] for values in sequential] == [prompt + 3 * (rest or 32)] * 2
