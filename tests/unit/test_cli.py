from __future__ import annotations

import json
from importlib.metadata import version

import pytest

from forkjoin_scheduler.dialect import builtin_names, load
from forkjoin_scheduler.errors import DialectError
from forkjoin_scheduler.settings import Settings
from forkjoin_server.cli import EMBEDDED_MODEL, main, serve_arguments


def _after(arguments, flag):
    return arguments[arguments.index(flag) + 1]


def _config(arguments):
    return json.loads(_after(arguments, "--additional-config"))


@pytest.mark.parametrize(
    ("argv", "model", "name"),
    [
        ([], str(EMBEDDED_MODEL), ["abacus"]),
        (["--port", "1"], str(EMBEDDED_MODEL), ["abacus"]),
        (["their/model"], "their/model", None),
        (["--port", "1", "their/model"], "their/model", None),
        (["--model", "their/model"], "their/model", None),
        (["--config", "serve.yaml"], "their/model", None),
    ],
    ids=["none", "flags_only", "first", "behind_flags", "flag", "config_file"],
)
def test_the_embedded_model_is_served_where_no_other_is_named(argv, model, name, monkeypatch, tmp_path):
    from vllm.entrypoints.cli.serve import ServeSubcommand

    served = {}
    (tmp_path / "serve.yaml").write_text("model: their/model\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["forkjoin"])
    monkeypatch.setattr(ServeSubcommand, "validate", lambda self, args: None)
    monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(lambda args: served.update(vars(args))))
    main(["serve", *argv])
    assert served["model_tag"] or served["model"] == model
    assert (served["served_model_name"], served["shutdown_timeout"]) == (name, 30)
    assert (EMBEDDED_MODEL / "config.json").is_file()


def test_vllms_own_flags_pass_through_in_order():
    ours = ["--dialect", "none", "--max-forks=2"]
    passed = ["some/model", "--port", "1", "-tp", "2", "--middleware", "mine"]
    assert serve_arguments([*passed[:3], *ours, *passed[3:]])[: len(passed)] == passed


def test_the_engine_is_told_the_scheduler_and_settings_that_it_accepts():
    arguments = serve_arguments(["m"])
    assert _after(arguments, "--scheduler-cls").endswith(".ForkJoinScheduler")
    settings = Settings.model_validate(_config(arguments)["forkjoin"])
    assert settings.dialect == load("threadweaver")
    assert settings.limits == load("threadweaver").limits


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--max-threads-per-fork", "max_threads_per_fork"),
        ("--max-forks", "max_forks"),
        ("--max-tokens-per-thread", "max_tokens_per_thread"),
        ("--max-total-tokens", "max_total_tokens"),
    ],
)
def test_a_limit_on_the_command_line_overrides_the_dialects_and_no_other(flag, name):
    limits = _config(serve_arguments(["m", flag, "3"]))["forkjoin"]["limits"]
    assert limits == load("threadweaver").limits.model_dump() | {name: 3}


def test_no_forks_at_all_is_a_limit_too():
    assert _config(serve_arguments(["m", "--max-forks", "0"]))["forkjoin"]["limits"]["max_forks"] == 0


def test_dialect_none_serves_with_vllms_own_scheduler_but_keeps_the_request_field_checked():
    arguments = serve_arguments(["m", "--dialect", "none", "--additional-config", '{"a": 1}'])
    assert "--scheduler-cls" not in arguments
    assert _config(arguments) == {"a": 1}
    assert _after(arguments, "--middleware") == "forkjoin_server.middleware.ForkJoinMiddleware"


def test_the_users_additional_config_is_kept_beside_ours():
    config = _config(serve_arguments(["m", "--additional-config", '{"theirs": {"x": 1}}']))
    assert config["theirs"] == {"x": 1}
    assert "dialect" in config["forkjoin"]


@pytest.mark.parametrize(("given", "seconds"), [([], "30"), (["--shutdown-timeout", "5"], "5")])
def test_requests_in_flight_are_drained_for_as_long_as_the_user_says(given, seconds):
    arguments = serve_arguments(["m", *given])
    assert arguments.count("--shutdown-timeout") == 1
    assert _after(arguments, "--shutdown-timeout") == seconds


def test_an_unknown_dialect_is_an_error():
    with pytest.raises(DialectError, match="threadweavr"):
        serve_arguments(["m", "--dialect", "threadweavr"])


def test_an_error_is_one_sentence_and_exit_status_2(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "m", "--dialect", "threadweavr"])
    assert capsys.readouterr().err.splitlines() == [
        "forkjoin: expected one of parallel-r1, threadweaver or the path of a YAML file, got 'threadweavr', which is neither"
    ]


def test_the_dialects_are_listed_with_their_sources(capsys):
    main(["dialects"])
    assert capsys.readouterr().out.splitlines() == [f"{n}\t{load(n).source}" for n in builtin_names()]


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["sevre"], 2), (["--help"], 0)])
def test_anything_else_shows_the_usage(argv, status, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == status
    assert "forkjoin serve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--max-forks", "-1"], "--max-forks: Input should be greater than or equal to 0, got -1"),
        (["--additional-config", "[1]"], "expected a JSON object without the key 'forkjoin', got [1]"),
        (["--additional-config", '{"forkjoin": {}}'], "without the key 'forkjoin'"),
        (["--additional-config", "{"], "--additional-config: expected a JSON object, Expecting property"),
        (["--served-model-name", "mine"], "`model` should be provided as the first positional argument"),
        (["--scheduler-cls", "mine"], "--scheduler-cls: expected none"),
    ],
)
def test_a_flag_that_cannot_be_is_one_sentence_and_exit_status_2(argv, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["serve", *argv])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("forkjoin: ")
    assert expected in line


def test_a_limit_of_the_command_line_is_a_cap_too():
    caps = _config(serve_arguments(["m", "--max-forks", "3"]))["forkjoin"]["caps"]
    assert caps == {"max_forks": 3} | dict.fromkeys(
        ["max_threads_per_fork", "max_tokens_per_thread", "max_total_tokens"]
    )


def test_help_shows_our_flags_and_then_vllms(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "--help"])
    out = capsys.readouterr().out
    assert exit_.value.code in (0, None)
    assert out.index("--max-threads-per-fork N") < out.index("forkjoin dialects") or "--dialect" in out
    assert "--help=all" in out


def test_the_version_is_the_distributions(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"vllm-forkjoin {version('vllm-forkjoin')}\n"


def test_a_model_is_checked_for_a_dialect_without_starting_a_server(capsys):
    main(["dialects", "check", str(EMBEDDED_MODEL), "threadweaver"])
    assert "fits threadweaver: each of </Outlines>, <Outlines>" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([str(EMBEDDED_MODEL), "parallel-r1"], "splits or lacks </Path>, <Path>, <Summary>, </Summary>"),
        (["/no/such/model", "threadweaver"], "expected a model with a tokenizer, got '/no/such/model'"),
        ([], "expected MODEL and DIALECT, got nothing"),
    ],
)
def test_a_model_that_does_not_fit_a_dialect_is_refused_saying_why(argv, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["dialects", "check", *argv])
    assert expected in capsys.readouterr().err
