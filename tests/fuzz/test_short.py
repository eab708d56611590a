"""A short run of each fuzz target, and that each would notice what is wrong. The long one: ``make fuzz``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.families import fork, transcript
from forkjoin_server.answer import weaver
from tests.fuzz import dialect_file, field, sequences
from tests.fuzz.__main__ import random_input, run
from tests.fuzz.source import Source
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
NUM_INPUTS = 2000


@pytest.mark.parametrize("name", TARGETS)
def test_no_random_input_breaks_a_target(name):
    assert run(name, NUM_INPUTS, seed=0) == 0


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_that_hypothesis_makes_breaks_a_target(name):
    @settings(max_examples=100)
    @given(st.binary(max_size=200))
    def holds(data):
        TARGETS[name](data)

    holds()


def _keeps_the_field(body, path, key, settings):
    return body, False


def _loses_what_it_releases(self):
    released = [part for part in self._parts if not isinstance(part, transcript.Transcript)]
    self._parts.clear()
    return released[1:]


def _forks_more_than_it_may(dialect, limits, context, tokenizer, **more):
    limits = limits.model_copy(update={"max_threads_per_fork": None})
    return fork.plan_fork(dialect, limits, context, tokenizer, **more)


def _loses_a_part(self, message):
    return self._take(message) if message.get("more_body", True) else self._take(message | {"body": b""})


def _fails_on_a_null(text, origin):
    return text.index("null") and dialect_file.Dialect.model_validate({})


@pytest.mark.parametrize(
    ("name", "where", "what", "broken"),
    [
        ("field", field, "prepare", _keeps_the_field),
        ("sequences", transcript.Transcript, "release", _loses_what_it_releases),
        ("sequences", sequences, "plan_fork", _forks_more_than_it_may),
        ("sequences", BoundDialect, "triggers", lambda self, ids: ids[-2] > 0 and ids[9999]),
        ("dialects", dialect_file, "parse", _fails_on_a_null),
        ("wire", weaver.Weaver, "send", _loses_a_part),
    ],
    ids=["field_left", "text_lost", "limit_ignored", "index_error", "file_not_refused", "last_chunk_lost"],
)
def test_a_target_notices(monkeypatch, capsys, name, where, what, broken):
    monkeypatch.setattr(where, what, broken)
    assert run(name, NUM_INPUTS, seed=0) > 0
    assert f"python -m tests.fuzz --input {name} " in capsys.readouterr().out


def test_what_models_write_forks_in_every_dialect_that_can(monkeypatch):
    plans = []
    plan_fork = sequences.plan_fork
    monkeypatch.setattr(
        sequences, "plan_fork", lambda *args, **more: plans.append(plan_fork(*args, **more)) or plans[-1]
    )
    for name in (*sequences.builtin_names(), *sequences.ASKED):
        plans.clear()
        for number in range(60):
            sequences.run(sequences.spoken(name), Source(random_input(number)))
        assert any(isinstance(plan, fork.ForkPlan) for plan in plans) == (name != "explicit"), name


def test_an_input_that_failed_runs_again_by_the_command_that_was_printed():
    command = [sys.executable, "-m", "tests.fuzz", "--input", "wire", random_input(3).hex()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
