"""``run-batch`` against a stand-in for a server, on a socket of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from forkjoin.terminal.commands import main

ROOT = Path(__file__).parents[3]
NUM_LINES = 6


@contextlib.contextmanager
def _standing_in(status_of, port=0):
    """The address of a server that answers with the status that ``status_of`` gives a prompt; what was asked.

    It hangs up on a prompt whose status is None.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            prompt = json.loads(self.rfile.read(int(self.headers["content-length"])))["prompt"]
            asked.append(prompt)
            status = status_of(prompt)
            if status is None:
                self.close_connection = True
                return
            body = {"id": f"cmpl-{prompt}", "text": prompt} if status == 200 else {"error": {"message": "no"}}
            data = json.dumps(body).encode()
            with contextlib.suppress(ConnectionError):  # who was killed reads no answer
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _line(number):
    return {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": {"prompt": number}}


@pytest.fixture
def files(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(_line(n)) + "\n" for n in range(NUM_LINES)))
    return source, target


def _argv(files, url, *more):
    return ["run-batch", "-i", str(files[0]), "-o", str(files[1]), "--url", url, *more]


def _run(files, url, *more):
    with pytest.raises(SystemExit) as exit_:
        main(_argv(files, url, *more))
    return exit_.value.code


def _statuses(files):
    rows = [json.loads(row) for row in files[1].read_text().splitlines()]
    return {row["custom_id"]: row["response"]["status_code"] for row in rows}


def test_a_second_run_asks_what_has_failed_and_nothing_else(files, capsys):
    with _standing_in(lambda prompt: 400 if prompt % 3 == 1 else 200) as (url, asked):
        assert _run(files, url) == 1
        assert sorted(asked) == list(range(NUM_LINES))
    assert _statuses(files) == {"0": 200, "1": 400, "2": 200, "3": 200, "4": 400, "5": 200}
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "run-batch: 0 of 6 answered"
    assert said[-1].startswith(
        f"run-batch: 4 of 6 answered, 2 failed, in {files[1]}; the first that failed is '"
    )
    assert said[-1].endswith("400: no. To ask what has no answer, run the same command again")

    with _standing_in(lambda prompt: 200) as (url, asked):
        assert _run(files, url) == 0
        assert sorted(asked) == [1, 4]
        assert _run(files, url) == 0
        assert sorted(asked) == [1, 4]
    assert _statuses(files) == dict.fromkeys(map(str, range(NUM_LINES)), 200)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "run-batch: 4 of 6 answered"
    assert said[-1] == f"run-batch: 6 of 6 answered, in {files[1]}"


def test_what_is_wrong_before_anything_is_asked_ends_it_with_2(files, capsys):
    with _standing_in(lambda prompt: 200) as (url, asked):
        assert _run(files, "nowhere") == 2
        assert _run(files, url, "--max-concurrency", "0") == 2
        files[0].write_text("1\n")
        assert _run(files, url) == 2
        assert asked == []
    said = capsys.readouterr().err
    assert "run-batch: base_url: expected http://host:port" in said
    assert "run-batch: --max-concurrency: expected a number from 1 on, got 0" in said
    assert f"run-batch: nothing was asked:\n{files[0]}:1: expected a JSON object, got 1: " in said
    assert not files[1].exists()


def test_a_server_that_is_not_there_ends_it_with_1_when_patience_ends(files, capsys):
    with _standing_in(lambda prompt: 200) as (url, _):
        pass
    assert _run(files, url, "--patience", "0") == 1
    said = capsys.readouterr().err
    assert f"0 of 6 answered, in {files[1]}: expected an answer of {url}, got none for " in said
    assert said.endswith("run the same command again\n")
    assert files[1].read_text() == ""


def test_a_key_that_the_server_does_not_take_ends_it_with_1(files, capsys):
    with _standing_in(lambda prompt: 401) as (url, asked):
        assert _run(files, url, "--max-concurrency", "1") == 1
        assert len(asked) == 1
    assert "got 401: no: give a key of this server's" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_run_that_is_ended_in_the_middle_keeps_what_it_has_and_the_next_does_the_rest(number, files):
    env = os.environ | {"PYTHONPATH": str(ROOT / "client")}
    held, is_over = threading.Semaphore(0), threading.Event()

    def status_of(prompt):
        if prompt >= 3:
            held.release()
            is_over.wait(60)
        return 200

    with _standing_in(status_of) as (url, _):
        command = [sys.executable, "-m", "forkjoin", *_argv(files, url, "--max-concurrency", "3")]
        run = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        try:
            for _ in range(3):  # each of the three waits for an answer now, and has written its first
                assert held.acquire(timeout=60)
            run.send_signal(number)
            _, said = run.communicate(timeout=60)
        finally:
            run.kill()
            is_over.set()
    before = files[1].read_text()
    assert _statuses(files) == {"0": 200, "1": 200, "2": 200}
    if number is signal.SIGKILL:
        assert run.returncode == -number
    else:
        assert run.returncode == 128 + number
        assert said.splitlines()[-1] == (
            f"run-batch: 3 of 6 answered, in {files[1]}: ended by {number.name}. To ask what has no answer, run "
            "the same command again"
        )
    with _standing_in(lambda prompt: 200) as (url, asked):
        assert _run(files, url) == 0
        assert sorted(asked) == [3, 4, 5]
    assert files[1].read_text().startswith(before)
    assert _statuses(files) == dict.fromkeys(map(str, range(NUM_LINES)), 200)


def test_a_run_loses_no_answer_when_its_server_ends_in_the_middle_and_comes_back(files):
    env = os.environ | {"PYTHONPATH": str(ROOT / "client")}
    held, is_over = threading.Semaphore(0), threading.Event()

    def status_of(prompt):
        if prompt < 2:
            return 200
        held.release()
        is_over.wait(60)
        return None

    with _standing_in(status_of) as (url, _):
        command = [sys.executable, "-m", "forkjoin", *_argv(files, url, "--max-concurrency", "2")]
        run = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(2):  # both wait for an answer now, and have written their first
            assert held.acquire(timeout=60)
        before = files[1].read_text()
        is_over.set()
    # Nobody listens now.
    assert run.poll() is None
    refuses = iter([503, 503, 503])
    with _standing_in(lambda prompt: next(refuses, 200), int(url.rpartition(":")[2])) as (_, asked):
        _, said = run.communicate(timeout=60)
        assert run.returncode == 0, said
        assert set(asked) == {2, 3, 4, 5}
        assert len(asked) == 4 + 3
    assert _statuses(files) == {"0": 200, "1": 200} | dict.fromkeys("2345", 200)
    assert files[1].read_text().startswith(before)
    assert len(files[1].read_text().splitlines()) == NUM_LINES
