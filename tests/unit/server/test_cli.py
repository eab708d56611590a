from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.errors import DialectError, UnsupportedEngine, UsageError
from forkjoin_scheduler.settings import KEY, OWN_POLICIES, UNLIMITED, Settings
from forkjoin_server.cli import COMMANDS, USAGE, main, serve_args
from forkjoin_server.start.configuration import EMBEDDED_MODEL, resolve
from tests.engine.renamed import model_for


@pytest.fixture(autouse=True)
def _no_other_arguments(monkeypatch):
    """vLLM's parser looks at the process's own."""
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])


@pytest.fixture(autouse=True)
def _stays(monkeypatch):
    """This process goes on when a server has ended in it."""
    monkeypatch.setattr("forkjoin_server.cli.leave", lambda status: None)


def _settings(args):
    return Settings.model_validate(args.additional_config["forkjoin"])


def _yaml(folder, text):
    path = folder / "serve.yaml"
    path.write_text(text)
    return ["--config", str(path)]


@pytest.mark.parametrize(
    ("argv", "model", "name"),
    [
        ([], str(EMBEDDED_MODEL), ["abacus"]),
        (["--port", "1"], str(EMBEDDED_MODEL), ["abacus"]),
        (["their/model"], "their/model", None),
        (["--port", "1", "their/model"], "their/model", None),
        (["--model", "their/model"], "their/model", None),
        (["--config", "model.yaml"], "their/model", None),
        (["--config=model.yaml"], "their/model", None),
        (["--config", "port.yaml"], str(EMBEDDED_MODEL), ["abacus"]),
        (["their/model", "--config", "port.yaml"], "their/model", None),
        (["--model", "their/model", "--config", "port.yaml"], "their/model", None),
        (["--config", "port.yaml", "their/model"], "their/model", None),
        (["--config", "name.yaml"], str(EMBEDDED_MODEL), ["mine"]),
    ],
)
def test_the_embedded_model_is_served_where_no_other_is_named(argv, model, name, monkeypatch, tmp_path):
    from vllm.entrypoints.cli.serve import ServeSubcommand

    served = {}
    (tmp_path / "model.yaml").write_text("model: their/model\n")
    (tmp_path / "port.yaml").write_text("port: 1\n")
    (tmp_path / "name.yaml").write_text("served-model-name: mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ServeSubcommand, "validate", lambda self, args: None)
    monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(lambda args: served.update(vars(args))))
    main(["serve", *argv])
    assert (served["model_tag"] or served["model"]) == model
    assert (served["served_model_name"], served["shutdown_timeout"]) == (name, 30)
    assert (EMBEDDED_MODEL / "config.json").is_file()


def test_vllms_own_flags_pass_through():
    args = serve_args(["m", "--port", "1025", "--max-forks=2", "-tp", "2", "--middleware", "mine"])
    assert (args.model_tag, args.port, args.tensor_parallel_size) == ("m", 1025, 2)
    assert args.middleware == ["mine", "forkjoin_server.http.middleware.ForkJoinMiddleware"]


def test_the_engine_is_told_the_scheduler_and_settings_that_it_accepts():
    args = serve_args(["m"])
    assert args.scheduler_cls.endswith(".ForkJoinScheduler")
    assert args.worker_cls == "auto"
    assert _settings(args).dialect == load("threadweaver")
    assert _settings(args).limits == load("threadweaver").limits


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--max-threads-per-fork", "max_threads_per_fork"),
        ("--max-forks", "max_forks"),
        ("--max_forks", "max_forks"),
        ("--max-tokens-per-thread", "max_tokens_per_thread"),
        ("--max-total-tokens", "max_total_tokens"),
    ],
)
def test_a_limit_on_the_command_line_overrides_the_dialects_and_no_other(flag, name):
    limits = _settings(serve_args(["m", flag, "3"])).limits.model_dump()
    assert limits == load("threadweaver").limits.model_dump() | {name: 3}


def test_no_forks_at_all_is_a_limit_too():
    assert _settings(serve_args(["m", "--max-forks", "0"])).limits.max_forks == 0


def test_dialect_none_serves_with_vllms_own_scheduler_but_keeps_the_request_field_checked():
    args = serve_args(["m", "--dialect", "none", "--additional-config", '{"a": 1}'])
    assert args.scheduler_cls is None
    assert args.additional_config == {"a": 1}
    assert args.middleware == ["forkjoin_server.http.middleware.ForkJoinMiddleware"]


@pytest.mark.parametrize(
    "given",
    [
        ["--additional-config", '{"theirs": {"x": 1}}'],
        ["--additional_config", '{"theirs": {"x": 1}}'],
        ["--additional-config.theirs.x", "1"],
        ["--additional_config.theirs.x=1"],
    ],
)
def test_the_users_additional_config_is_kept_beside_ours_in_whatever_form_it_comes(given):
    config = serve_args(["m", *given]).additional_config
    assert config["theirs"] == {"x": 1}
    assert config["forkjoin"]["dialect"]["name"] == "threadweaver"


def test_all_flags_may_stand_in_vllms_config_file_and_those_of_the_command_line_win(tmp_path):
    text = "dialect: parallel-r1\nmax-forks: 2\nmax_total_tokens: 9\njoin-ahead-tokens: 0\n"
    more = "shutdown-timeout: 5\nadditional-config: {theirs: {x: 1}}\n"
    args = serve_args([*_yaml(tmp_path, text + more), "--max-forks", "3"])
    settings = _settings(args)
    assert settings.dialect == load("parallel-r1")
    assert (settings.caps.max_forks, settings.caps.max_total_tokens) == (3, 9)
    assert settings.join_ahead_tokens == 0
    assert (args.shutdown_timeout, args.additional_config["theirs"]) == (5, {"x": 1})


@pytest.mark.parametrize(("given", "tokens"), [([], 128), (["--join-ahead-tokens", "0"], 0)])
def test_how_far_joins_are_prefilled_ahead_is_the_users_to_say(given, tokens):
    assert _settings(serve_args(["m", *given])).join_ahead_tokens == tokens


def test_how_requests_and_threads_are_scheduled_is_the_users_to_say():
    plain = _settings(serve_args(["m"]))
    assert (plain.admission, plain.max_threads_running, plain.slo_itl_ms) == ("family", None, None)
    assert _settings(serve_args(["m", "--admission", "greedy"])).admission == "greedy"
    assert _settings(serve_args(["m", "--max-threads-running", "3"])).max_threads_running == 3
    assert _settings(serve_args(["m", "--slo-itl-ms", "12.5"])).slo_itl_ms == 12.5
    own = "forkjoin_scheduler.policy.threads.Eager"
    assert _settings(serve_args(["m", "--thread-policy", own])).thread_policy == own
    own = "forkjoin_scheduler.policy.pruning.Agreement"
    assert _settings(serve_args(["m", "--prune-policy", own])).prune_policy == own
    own = "forkjoin_scheduler.policy.admission.Admission"
    assert _settings(serve_args(["m", "--admission-policy", own])).admission_policy == own
    own = "forkjoin_scheduler.policy.eviction.LastCome"
    assert _settings(serve_args(["m", "--eviction-policy", own])).eviction_policy == own


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--max-threads-running", "0"], "--max-threads-running: .*greater than or equal to 1, got 0"),
        (["--slo-itl-ms", "0"], "--slo-itl-ms: .*greater than 0, got 0"),
        (
            ["--slo-itl-ms", "9", "--max-threads-running", "2"],
            "expected one way to choose threads, got max_threads_running and slo_itl_ms",
        ),
        (
            ["--admission", "greedy", "--admission-policy", "forkjoin_scheduler.policy.admission.Admission"],
            "expected one way to admit requests, got admission greedy and admission_policy",
        ),
    ],
)
def test_scheduling_that_cannot_be_is_refused_in_a_sentence(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        serve_args(["m", *given])


#: Paths of no policy, and what is wrong with them.
NO_POLICIES = {
    "no.such.Thing": "it can't be imported: No module named 'no'",
    "forkjoin_scheduler.policy.threads.NoSuch": "it can't be imported: .* has no attribute 'NoSuch'",
    "os.path": "it can't be called without arguments: 'module' object is not callable",
    "forkjoin_scheduler.policy.threads.Capped": "it can't be called without arguments: .*'per_family'",
    "sys.exit": "it can't be called without arguments",
    "collections.Counter": "it makes a Counter, which is none",
}


@pytest.mark.parametrize("path", NO_POLICIES)
@pytest.mark.parametrize("setting", OWN_POLICIES)
def test_a_policy_of_ones_own_that_is_none_is_refused_at_start_in_one_sentence_for_all(setting, path):
    flag, kind = f"--{setting.replace('_', '-')}", OWN_POLICIES[setting]
    like = re.escape(f"expected the path of a class like {kind.__module__}.{kind.__name__}")
    sentence = rf"{flag}: .*{like} \(docs/scheduling\.md shows one\), but {NO_POLICIES[path]}.*, got {path}"
    with pytest.raises(UsageError, match=sentence):
        serve_args(["m", flag, path])


def test_a_policy_of_another_kind_is_none():
    for setting, other in (
        ("thread_policy", "admission.Admission"),
        ("prune_policy", "threads.Eager"),
        ("admission_policy", "eviction.LastCome"),
        ("eviction_policy", "pruning.Agreement"),
    ):
        with pytest.raises(ValueError, match="which is none"):
            Settings(**{setting: f"forkjoin_scheduler.policy.{other}"})


def test_how_long_an_engine_may_be_silent_is_the_users_to_say():
    for given, limits in (([], (15, 120)), (["--ready-timeout", "2.5", "--health-timeout", "9"], (2.5, 9))):
        args = serve_args(["m", *given])
        assert (args.forkjoin_ready_timeout, args.forkjoin_health_timeout) == limits


def test_a_server_is_not_started_again_before_it_gets_no_requests():
    with pytest.raises(
        UsageError, match="--health-timeout: expected at least the --ready-timeout, 15 s, got 9 s"
    ):
        serve_args(["m", "--health-timeout", "9"])


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "soon"])
def test_a_silence_that_never_ends_is_refused(text):
    with pytest.raises((UsageError, SystemExit), match=r"2|--ready-timeout"):
        serve_args(["m", "--ready-timeout", text])
    with pytest.raises(UsageError, match="FORKJOIN_READY_TIMEOUT"):
        resolve([], {"FORKJOIN_READY_TIMEOUT": text})


@pytest.mark.parametrize(("given", "seconds"), [([], 30), (["--shutdown-timeout", "5"], 5)])
def test_requests_in_flight_are_drained_for_as_long_as_the_user_says(given, seconds):
    assert serve_args(["m", *given]).shutdown_timeout == seconds


def test_a_stitched_join_gets_the_worker_that_it_needs():
    assert serve_args(["m", "--dialect", "npr"]).worker_cls.endswith("worker.ForkJoinWorker")


def test_an_unknown_dialect_is_an_error():
    with pytest.raises(DialectError, match="threadweavr"):
        serve_args(["m", "--dialect", "threadweavr"])


def test_an_error_is_one_sentence_and_exit_status_2(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "m", "--dialect", "threadweavr"])
    assert capsys.readouterr().err == (
        f"forkjoin: expected one of {', '.join(builtin_names())} or the path of a YAML file, "
        "got 'threadweavr', which is neither\n"
    )


def test_a_transcript_is_tested_line_by_line_and_a_difference_is_an_exit_status(tmp_path, capsys):
    path = tmp_path / "said.txt"
    right = "<Outlines><Outline>1: a</Outline></Outlines>\n<Thread>\n1: b</Thread>\n</Parallel>"
    path.write_text(right)
    main(["dialects", "test", "threadweaver", str(path)])
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"{path}:1: fork: 1 threads: 1 'a'"
    assert last == "1 forks, 1 joins, 0 forks refused, 0 differences"
    path.write_text(right.replace("\n1:", "1:"))
    with pytest.raises(SystemExit) as ended:
        main(["dialects", "test", "threadweaver", str(path)])
    assert ended.value.code == 1
    assert "differs: before thread 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["threadweaver"], "expected DIALECT and the FILE of a transcript, got threadweaver"),
        (["threadweaver", "/nowhere"], "expected a readable text in UTF-8, got /nowhere"),
        (["apr", __file__], "dialect 'apr': expected one that forks at a trigger"),
        (["nope", __file__], "or the path of a YAML file, got 'nope'"),
    ],
    ids=["no_file", "nowhere", "not_shown", "no_dialect"],
)
def test_what_can_not_be_tested_is_said_in_a_sentence(argv, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["dialects", "test", *argv])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_the_dialects_are_listed_with_their_sources(capsys):
    main(["dialects"])
    assert capsys.readouterr().out.splitlines() == [f"{n}\t{load(n).source}" for n in builtin_names()]


def test_no_command_shows_the_usage(capsys):
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2
    assert "forkjoin serve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sevre", "m"], "expected a command, got sevre: the nearest are serve, "),
        (["--verison"], "expected a command, got --verison: the nearest are --version, "),
        (["x" * 1000], f"expected a command, got {'x' * 29}...: "),
        (["keys"], "keys: expected new NAME, got nothing\n"),
        (
            ["dialects", "chekc", "m"],
            "dialects: expected nothing, check MODEL DIALECT, test DIALECT FILE or infer MODEL|FILE, got chekc",
        ),
    ],
    ids=["command", "flag", "long", "nothing_behind", "wrong_behind"],
)
def test_what_is_no_command_is_named_beside_what_it_may_have_been(argv, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith(f"forkjoin: {said}")


def test_each_command_of_the_usage_is_one_that_a_wrong_one_may_have_been():
    named = re.findall(r"^(?:usage:)?\s+forkjoin (\S+)", USAGE, flags=re.M)
    assert {name for names in named for name in names.split("|")} | {"--help"} == set(COMMANDS)


@pytest.mark.parametrize(
    "argv", [["--help"], ["-h"], ["dialects", "--help"], ["keys", "new", "-h"], ["completion", "--help"]]
)
def test_help_is_written_to_where_a_pager_reads_it(argv, capsys):
    main(argv)
    assert "forkjoin serve" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["serve", "bench", "chat", "trace", "top", "run-batch"])
def test_the_help_of_a_command_needs_nothing_that_the_command_needs(command, monkeypatch, capsys):
    monkeypatch.setattr("forkjoin_server.cli.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code in (0, None)
    assert f"forkjoin {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--max-forks", "-1"], "--max-forks: Input should be greater than or equal to 0, got -1"),
        (["--join-ahead-tokens", "-1"], "--join-ahead-tokens: Input should be greater than or equal to 0"),
        (["--additional-config", "[1]"], "expected a JSON object without the key 'forkjoin', got [1]"),
        (["--additional-config", '{"forkjoin": {}}'], "without the key 'forkjoin'"),
        (["--additional-config.forkjoin.dialect", "x"], "without the key 'forkjoin'"),
        (["--served-model-name", "mine"], "`model` should be provided as the first positional argument"),
        (["--scheduler-cls", "mine"], "--scheduler-cls: expected none"),
        (["--dialect", "multiverse", "--worker-cls", "mine"], "--worker-cls: expected none"),
        (["--dialect", "none", "--max-forks", "1"], "--max-forks: expected a dialect"),
        (["--dialect", "none", "--join-ahead-tokens", "1"], "--join-ahead-tokens: expected a dialect"),
        (["--config", "/no/such.yaml"], "--config: expected a YAML file of flags, got /no/such.yaml"),
    ],
)
def test_a_flag_that_cannot_be_is_one_sentence_and_exit_status_2(argv, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["serve", *argv])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("forkjoin: ")]
    assert expected in line


@pytest.mark.parametrize("text", ["- 1\n", "a: [1\n", ""], ids=["list", "no_yaml", "empty"])
def test_a_config_file_that_is_none_is_refused_by_name(text, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["serve", *_yaml(tmp_path, text)])
    assert f"forkjoin: --config: expected a YAML file of flags, got {tmp_path}" in capsys.readouterr().err


def test_a_class_of_the_config_file_is_refused_as_on_the_command_line(tmp_path):
    with pytest.raises(UsageError, match="--scheduler-cls: expected none"):
        serve_args(_yaml(tmp_path, "scheduler-cls: mine\n"))


def test_a_limit_of_the_command_line_is_a_cap_too():
    caps = _settings(serve_args(["m", "--max-forks", "3"])).caps
    assert caps == UNLIMITED.model_copy(update={"max_forks": 3})


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


def test_the_checks_of_the_tutorial_for_a_model_of_ones_own_run_as_written(capsys, tmp_path_factory):
    guide = (Path(__file__).parents[3] / "docs/serve-your-model.md").read_text()
    commands = re.findall(r"^    forkjoin (dialects check MODEL (\S+))$", guide, flags=re.M)
    assert [name for _, name in commands] == ["threadweaver", "multiverse", "npr"]
    for command, name in commands:
        model = str(model_for(name, tmp_path_factory.mktemp))
        main(command.replace("MODEL", model).split())
        assert f"{model} fits {name}: " in capsys.readouterr().out


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


TEXT_DIALECT = """
name: spoken
source: a test
tags_are: text
fork_at: prompt
width: 2
thread: {header: HEADER}
join: {kind: vote, result: "[0-9]+"}
"""


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("'{n}:'", "fits spoken: its tags are text, which any tokenizer writes\n"),
        (
            "'{user}{n}:{assistant}'",
            "any tokenizer writes; the chat template gives the turns that it speaks in",
        ),
    ],
)
def test_a_dialect_whose_tags_are_text_is_checked_for_its_turns_only(header, said, tmp_path, capsys):
    (tmp_path / "spoken.yaml").write_text(TEXT_DIALECT.replace("HEADER", header))
    main(["dialects", "check", str(EMBEDDED_MODEL), str(tmp_path / "spoken.yaml")])
    assert said in capsys.readouterr().out


def test_a_dialect_that_speaks_in_turns_needs_a_chat_template(tmp_path, capsys):
    (tmp_path / "spoken.yaml").write_text(TEXT_DIALECT.replace("HEADER", "'{user}'"))
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, model, ignore=shutil.ignore_patterns("*.jinja", "*.safetensors"))
    with pytest.raises(SystemExit, match="2"):
        main(["dialects", "check", str(model), str(tmp_path / "spoken.yaml")])
    assert "the model's tokenizer has no chat template" in capsys.readouterr().err


def _vllm_config(dialect, **changes):
    """What the check at start looks at of a VllmConfig."""
    from forkjoin_scheduler.vllm_seam.compat import WORKER

    parallel = {"pipeline_parallel_size": 1, "decode_context_parallel_size": 1}
    parallel |= {"prefill_context_parallel_size": 1, "worker_cls": WORKER}
    config = {
        "additional_config": {KEY: Settings.of(load(dialect), {}).model_dump(mode="json")} if dialect else {},
        "parallel_config": SimpleNamespace(**(parallel | changes)),
        "kv_transfer_config": None,
        "speculative_config": None,
        "aux_output_config": SimpleNamespace(enabled=False),
        "cache_config": SimpleNamespace(enable_prefix_caching=True, block_size=16),
        "device_config": SimpleNamespace(device_type="cuda"),
        "model_config": SimpleNamespace(
            runner_type="generate",
            max_model_len=64,
            is_hybrid=False,
            is_attention_free=False,
            is_diffusion=False,
            return_sampling_mask=False,
            model=str(EMBEDDED_MODEL),
            tokenizer=str(EMBEDDED_MODEL),
            tokenizer_mode="hf",
            tokenizer_revision=None,
            trust_remote_code=False,
        ),
    }
    return SimpleNamespace(**config)


@pytest.fixture
def embedded_tokenizer(monkeypatch):
    from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer
    from forkjoin_server.vllm_seam.tokenizers import tokenizer_of

    tokenizer = tokenizer_of(str(EMBEDDED_MODEL))
    monkeypatch.setattr(EngineTokenizer, "from_model_config", lambda model_config: tokenizer)


@pytest.mark.usefixtures("embedded_tokenizer")
@pytest.mark.parametrize(
    ("dialect", "changes", "error", "message"),
    [
        ("threadweaver", {"decode_context_parallel_size": 2}, UnsupportedEngine, "context parallelism"),
        ("stitched", {"pipeline_parallel_size": 2}, UnsupportedEngine, "--pipeline-parallel-size"),
        ("parallel-r1", {}, DialectError, "splits or lacks </Path>"),
        ("stitched", {"worker_cls": "auto"}, UnsupportedEngine, "needs --worker-cls"),
    ],
)
def test_what_the_engine_will_refuse_is_refused_before_it_starts(dialect, changes, error, message, stitched):
    from forkjoin_server.vllm_seam.start.configs import check_at_start

    with pytest.raises(error, match=message):
        check_at_start(_vllm_config(stitched if dialect == "stitched" else dialect, **changes))


@pytest.mark.usefixtures("embedded_tokenizer")
def test_what_the_engine_takes_starts(stitched):
    from forkjoin_server.vllm_seam.start.configs import check_at_start

    check_at_start(_vllm_config("threadweaver"))
    check_at_start(_vllm_config(stitched))
    check_at_start(_vllm_config("threadweaver", pipeline_parallel_size=2))
    check_at_start(_vllm_config(None, decode_context_parallel_size=2))


@pytest.fixture
def stitched(tmp_path):
    """The embedded model's dialect, with a join that moves its threads' KV."""
    dialect = load("threadweaver").model_dump(mode="json")
    dialect["join"]["kind"], dialect["thread"]["joined_header"] = "stitch", None
    (tmp_path / "stitched.yaml").write_text(json.dumps(dialect))
    return str(tmp_path / "stitched.yaml")


def test_benchmarks_say_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("forkjoin_server.cli.find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "run"])
    assert "bench needs matplotlib: install vllm-forkjoin[bench]" in capsys.readouterr().err
