from __future__ import annotations

import contextlib
import json

import pytest

from forkjoin_scheduler.errors import UsageError
from forkjoin_server.cli import main
from forkjoin_server.start import batches
from forkjoin_server.vllm_seam.start.command_line import ServeParser

FILES = ["-i", "in", "-o", "out"]


def test_no_flag_of_its_own_is_one_of_the_servers():
    theirs = ServeParser(lambda parser: None, default_model="", default_drain_s=0).serve
    ours = {flag for action in batches.parser()._actions for flag in action.option_strings}
    assert ours & set(theirs._option_string_actions) == {"-h", "--help"}
    assert not any(flag.startswith(("-i", "-o")) for flag in theirs._option_string_actions)


def test_without_a_url_the_other_flags_are_those_of_a_server_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = []

    @contextlib.contextmanager
    def serving(flags):
        given.append(flags)
        yield None

    monkeypatch.setattr(batches, "serving", serving)
    monkeypatch.setattr(batches.command, "run_batch", lambda args, asked: asked.__enter__() or 7)
    argv = ["m", "-i", "in", "--dialect", "npr", "-tp", "2", "-o", "out", "--max-concurrency", "3"]
    assert batches.run_batch(argv) == 7
    assert given == [["m", "--dialect", "npr", "-tp", "2"]]


def test_an_output_that_has_all_answers_starts_no_server(monkeypatch, tmp_path, capsys):
    def serving(flags):
        @contextlib.contextmanager
        def no():
            pytest.fail("it starts a server")
            yield

        return no()

    monkeypatch.setattr(batches, "serving", serving)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text(json.dumps(line))
    (asked,) = batches.command.read_lines(source)
    answer = {"status_code": 200, "request_id": "r", "body": {}}
    target.write_text(
        json.dumps({"id": asked.id, "custom_id": "a", "response": answer, "error": None}) + "\n"
    )
    assert batches.run_batch(["-i", str(source), "-o", str(target)]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"run-batch: 1 of 1 answered, in {target}"


def test_flags_of_a_server_beside_the_url_of_another_are_an_error(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["run-batch", *FILES, "--url", "http://s", "--dialect", "npr"])
    assert exit_.value.code == 2
    assert "got --dialect npr: drop these or --url" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "flag", "why"),
    [
        (["--api-key", "k"], "--api-key", "the run gives it a key of its own"),
        (["--api_key=k"], "--api-key", "the run gives it a key of its own"),
        (["m", "--ssl-keyfile", "f"], "--ssl-keyfile", "it is asked at a socket"),
        (["--ssl-certfile=f"], "--ssl-certfile", "it is asked at a socket"),
        (["--headless"], "--headless", "such a server answers nobody"),
        (["--grpc"], "--grpc", "such a server speaks no HTTP"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_of_a_server_that_the_run_cant_ask_are_an_error(flags, flag, why):
    with pytest.raises(UsageError, match=f"can ask, got {flag}, but {why}.*: drop it, or start"):
        batches.run_batch([*FILES, *flags])


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_a_config_file_may_have_none_of_them_either(by, monkeypatch, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("headless: false\napi_key: k\n")
    flags = ["--config", str(path)] if by == "flag" else []
    monkeypatch.setenv("FORKJOIN_CONFIG", "" if by == "flag" else str(path))
    with pytest.raises(UsageError, match="got --api-key, but"):
        batches.run_batch([*FILES, *flags])


def test_a_wrong_input_ends_it_before_a_server_starts(tmp_path, capsys):
    (tmp_path / "in").write_text("[]")
    with pytest.raises(SystemExit) as exit_:
        main(["run-batch", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    assert exit_.value.code == 2
    assert "in:1: expected a JSON object, got []" in capsys.readouterr().err
