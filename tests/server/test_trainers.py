"""The examples for trainers, run by the trainers' own classes: TRL, verl and SkyRL, none of which needs a GPU here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run():
    """Runs a program of ``trainers/`` beside what it tests, and returns what it saw. No skip where that can't be."""
    done = subprocess.run([ROOT / "scripts/install-trainers"], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    installed = done.stdout.splitlines()[-1]

    def run(name: str, argument: str):
        paths = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "client"), installed]
        env = os.environ | {"PYTHONPATH": ":".join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, ROOT / f"tests/server/trainers/{name}", argument]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        (seen,) = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
        return json.loads(seen.removeprefix("SEEN "))

    return run


def sampled_logprobs(mask, logprobs):
    """Those of the tokens that count; the others have 0."""
    assert {p for is_sampled, p in zip(mask, logprobs, strict=True) if not is_sampled} <= {0.0}
    return [p for is_sampled, p in zip(mask, logprobs, strict=True) if is_sampled]


def test_trl_trains_on_transcripts_and_its_weights_come_back(run, tmp_path):
    seen = run("trl_run.py", str(tmp_path))
    first, second = seen["calls"]
    assert [first["step"], second["step"]] == [0, 1]
    for call in (first, second):
        assert call["prompts"] == 4
        assert call["has_weights"]
        rows = call["rows"]
        assert {name: len(rows[name]) for name in rows} == dict.fromkeys(
            ("prompt_ids", "completion_ids", "logprobs", "env_mask"), 4
        )
        for ids, mask, logprobs in zip(
            rows["completion_ids"], rows["env_mask"], rows["logprobs"], strict=True
        ):
            assert len(ids) == len(mask) == len(logprobs)
            assert all(p <= 0 for p in sampled_logprobs(mask, logprobs))
        assert any(0 in mask for mask in rows["env_mask"]), "it forked: a header was injected"
    assert first["norm"] != second["norm"], "the trainer took a step, and the engine its weights"
    counted = [sum(mask) for mask in first["rows"]["env_mask"]]
    assert seen["log"][0]["completions/mean_length"] == sum(counted) / len(counted)


def test_verl_takes_a_row_for_each_context_or_one_for_all(run, server):
    seen = run("verl_run.py", server)
    *threads, request = seen["rows"]
    assert [row["extra_fields"]["thread"] for row in seen["rows"]] == [0, 1, -1]
    for row in [*seen["rows"], *seen["one"]]:
        assert len(row["responses"]) == len(row["response_mask"]) == len(row["rollout_log_probs"])
        sampled_logprobs(row["response_mask"], row["rollout_log_probs"])
    assert all(0 not in row["response_mask"] for row in threads)
    for row in threads:
        assert row["prompts"][: len(request["prompts"])] == request["prompts"]
    assert {0, 1} == set(request["response_mask"])
    (one,) = seen["one"]
    assert one["prompts"] == request["prompts"]
    assert sum(one["response_mask"]) > len(one["responses"]) / 2, "the threads' tokens count"
    assert "row of thread 0: expected at most rollout.prompt_length=30 tokens" in seen["too_long"]


def test_skyrl_accepts_the_contexts_of_a_tree_as_the_steps_of_a_trajectory(run, server):
    seen = run("skyrl_run.py", server)
    assert seen["is_last_step"] == [False, False, True, True]
    assert seen["rewards"] == [0.0, 0.0, 1.0, 1.0]
    assert [t["instance_id"] for t in seen["trajectory_ids"]] == ["of two"] * 3 + ["of one"]
    assert seen["stop_reasons"] == ["stop"] * 4
    for mask, logprobs in zip(seen["loss_masks"], seen["rollout_logprobs"], strict=True):
        assert all(p <= 0 for p in sampled_logprobs(mask, logprobs))
    assert [0 in mask for mask in seen["loss_masks"]] == [False, False, True, False]
