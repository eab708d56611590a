"""A batch whose server ends in the middle and comes back, and one that starts a server of its own."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.server import unhurried
from tests.server.conftest import END_S, START_S, start_server, starting_server
from tests.server.test_batch import rows_of, start_batch, until_rows

pytestmark = pytest.mark.server

NUM_LINES = 6


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """An input whose answers take their time, and where its output goes."""
    body = {
        "model": "abacus",
        "temperature": 0,
        "messages": [{"role": "user", "content": "a=482*731, b=9047*36"}],
        **unhurried.taking(0.01),
    }
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line | {"custom_id": str(n)}) + "\n" for n in range(NUM_LINES)))
    return source, tmp_path / "out.jsonl"


def _check(target: Path) -> None:
    """Each request has its answer, once, and all are the same."""
    bodies = [row["response"]["body"] for row in rows_of(target).values()]
    assert len(bodies) == NUM_LINES
    (text,) = {body["choices"][0]["message"]["content"] for body in bodies}
    assert f"a={482 * 731}" in text
    assert {body["usage"]["forkjoin"]["num_threads"] for body in bodies} == {2}


def test_a_run_loses_no_answer_when_its_server_ends_in_the_middle_and_starts_again(files, tmp_path):
    flags = (*unhurried.FLAGS, "--shutdown-timeout", "1")
    with start_server(tmp_path / "first", *flags, env=unhurried.ENV) as (address, process):
        run = start_batch(*files, "--url", address, "--max-concurrency", "2", "--patience", str(START_S))
        try:
            until_rows(2, files[1], run)
            process.send_signal(signal.SIGTERM)  # two are answered now, and are cut
            assert process.wait(timeout=END_S) == 0
            before = files[1].read_text()
            assert 2 <= len(before.splitlines()) < NUM_LINES
            port = address.rpartition(":")[2]
            with starting_server(tmp_path / "second", *flags, "--port", port, env=unhurried.ENV):
                _, said = run.communicate(timeout=START_S)
        finally:
            run.kill()
    assert run.returncode == 0, said
    assert files[1].read_text().startswith(before)
    _check(files[1])


def test_a_run_without_a_url_starts_a_server_and_ends_it(files, monkeypatch):
    for name, value in unhurried.ENV.items():
        monkeypatch.setenv(name, value)
    flags = ("--max-model-len", "4096", "--block-size", "32", "--enforce-eager")
    run = start_batch(*files, *unhurried.FLAGS, *flags)
    _, said = run.communicate(timeout=START_S)
    assert run.returncode == 0, said[-4000:]
    assert said.splitlines()[-1] == f"run-batch: {NUM_LINES} of {NUM_LINES} answered, in {files[1]}"
    assert "drained: all requests in flight were answered" in said
    assert "Traceback" not in said
    _check(files[1])
