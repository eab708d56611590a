"""One file, the environment and flags: which wins, what is refused, what is shown."""

from __future__ import annotations

import logging
import os
from importlib import import_module

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from forkjoin_scheduler import redact
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.settings import Settings
from forkjoin_server.cli import main
from forkjoin_server.start import environment
from forkjoin_server.start.configuration import EMBEDDED_MODEL, resolve
from forkjoin_server.start.effective import effective, lines
from forkjoin_server.start.flags import own_flags


@pytest.fixture(autouse=True)
def _no_other_arguments(monkeypatch):
    """vLLM's parser looks at the process's own."""
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])


@pytest.fixture(autouse=True)
def _stays(monkeypatch):
    """This process goes on when a server has ended in it."""
    monkeypatch.setattr("forkjoin_server.cli.leave", lambda status: None)


@pytest.fixture
def yaml(tmp_path):
    def write(text):
        path = tmp_path / "serve.yaml"
        path.write_text(text)
        return str(path)

    return write


def _max_forks(given):
    return Settings.model_validate(given.args.additional_config["forkjoin"]).caps.max_forks


def _model(given):
    return given.args.model_tag or given.args.model


@pytest.mark.parametrize(
    ("flags", "variable", "key", "expected"),
    [
        (True, True, True, 1),
        (False, True, True, 2),
        (True, False, True, 1),
        (True, True, False, 1),
        (False, False, True, 3),
        (False, True, False, 2),
        (False, False, False, None),
    ],
)
def test_flags_win_over_the_environment_that_over_the_file_that_over_defaults(
    flags, variable, key, expected, yaml
):
    argv = ["--config", yaml("max-forks: 3\n" if key else "port: 1025\n")]
    argv += ["--max-forks", "1"] if flags else []
    assert _max_forks(resolve(argv, {"FORKJOIN_MAX_FORKS": "2"} if variable else {})) == expected


@pytest.mark.parametrize(
    ("argv", "variable", "key", "expected"),
    [
        (["flag"], "variable", "file", "flag"),
        (["--model", "flag"], "variable", "file", "flag"),
        (["--port", "1025", "flag"], "variable", "file", "flag"),
        ([], "variable", "file", "variable"),
        ([], None, "file", "file"),
        ([], "variable", None, "variable"),
        ([], None, None, str(EMBEDDED_MODEL)),
        (["--served-model-name", "mine"], "variable", None, "variable"),
        (["flag", "--served-model-name", "mine"], None, None, "flag"),
    ],
)
def test_the_model_is_chosen_in_the_same_order(argv, variable, key, expected, yaml):
    file = ["--config", yaml(f"model: {key}\n" if key else "port: 1025\n")]
    environ = {"FORKJOIN_MAX_FORKS": "2"} | ({"FORKJOIN_MODEL": variable} if variable else {})
    given = resolve([*argv, *(file if key else [])], environ)
    assert (_model(given), _max_forks(given)) == (expected, 2)


def test_the_file_may_be_named_by_the_environment_and_the_flag_wins(yaml, tmp_path):
    (tmp_path / "other.yaml").write_text("max-forks: 4\n")
    environ = {"FORKJOIN_CONFIG": yaml("max-forks: 3\n")}
    assert _max_forks(resolve([], environ)) == 3
    assert _max_forks(resolve(["m"], environ)) == 3
    assert _max_forks(resolve([f"--config={tmp_path}/other.yaml"], environ)) == 4


def test_a_false_in_the_file_switches_off_what_a_flag_can_switch_off(yaml):
    """vLLM's own parser drops it."""
    assert (
        resolve(["--config", yaml("enable-prefix-caching: false\n")], {}).args.enable_prefix_caching is False
    )


def test_keys_may_be_written_with_underscores_and_reach_into_vllms_objects(yaml):
    given = resolve(
        [
            "--config",
            yaml("max_forks: 3\ncompilation-config.mode: 0\ncompilation_config.debug_dump_path: x\n"),
        ],
        {},
    )
    assert _max_forks(given) == 3
    assert int(given.args.compilation_config.mode) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "max-frks: 1\n",
            "expected flags of forkjoin serve as keys, got 'max-frks': did you mean 'max-forks'?",
        ),
        ("max-fork: 1\n", "got 'max-fork': did you mean 'max-forks'?"),
        ("gpu_memory_utilisation: 1\n", "did you mean 'gpu-memory-utilization'?"),
        ("config: other.yaml\n", "got 'config': did you mean"),
        ("max-forks: 1\nmax-forks: 2\n", "expected each key once, got 'max-forks' twice"),
        ("max-forks: 1\nmax_forks: 2\n", "expected each flag once, got max-forks twice"),
        ("max-forks:\n", "max-forks: expected a value, got nothing: drop the key"),
        ("api-key:\n", "api-key: expected a value, got nothing"),
        ("max-forks: false\n", "max-forks: expected a value, got false"),
        ("max-forks: -1\n", "serve.yaml: max-forks: Input should be greater than or equal to 0, got -1"),
        ("admission: best\n", "serve.yaml: admission: expected one of family, greedy, got 'best'"),
        ("max-forks: many\n", "serve.yaml: max-forks: expected int, got 'many'"),
    ],
)
def test_what_cannot_be_in_the_file_is_refused_in_a_sentence(text, sentence, yaml, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--config", yaml(text)])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("forkjoin: ")]
    assert sentence in line


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"FORKJOIN_MAX_FORK": "1"}, "got FORKJOIN_MAX_FORK: did you mean FORKJOIN_MAX_FORKS"),
        (
            {"FORKJOIN_PROT": "1"},
            "expected a variable of fork/join's, got FORKJOIN_PROT: did you mean FORKJOIN_",
        ),
        (
            {"FORKJOIN_MAX_FORKS": "-1"},
            "FORKJOIN_MAX_FORKS: Input should be greater than or equal to 0, got -1",
        ),
        ({"FORKJOIN_MAX_FORKS": "many"}, "FORKJOIN_MAX_FORKS: expected int, got 'many'"),
        ({"FORKJOIN_ADMISSION": "best"}, "FORKJOIN_ADMISSION: expected one of family, greedy, got 'best'"),
        (
            {"FORKJOIN_CONFIG": "/no/such.yaml"},
            "FORKJOIN_CONFIG: expected a YAML file of flags, got /no/such.yaml",
        ),
        ({"FORKJOIN_DIALECT": "none", "FORKJOIN_MAX_FORKS": "1"}, "--max-forks: expected a dialect"),
    ],
)
def test_a_variable_that_cannot_be_is_refused_by_its_name(environ, sentence):
    with pytest.raises(UsageError) as error:
        resolve(["m"], environ)
    assert sentence in str(error.value)


def test_every_flag_of_ours_has_a_variable():
    names = own_flags()
    assert {"dialect", "max-forks", "admission", "thread-policy"} < names.keys()
    environ = {environment.variable(name): "x" for name in names}
    assert environment.read(environ, names).keys() == names.keys()


def test_an_empty_variable_is_none():
    assert _max_forks(resolve(["m"], {"FORKJOIN_MAX_FORKS": "", "FORKJOIN_MODEL": ""})) is None


@pytest.mark.parametrize(
    "name",
    [
        "FORKJOIN_SERVICE_HOST",
        "FORKJOIN_SERVICE_PORT_HTTP",
        "FORKJOIN_PORT",
        "FORKJOIN_PORT_8000_TCP_ADDR",
        "FORKJOIN_ROUTER_SERVICE_HOST",
        "FORKJOIN_IN_FLIGHT",
        "FORKJOIN_BENCH_SCRIPT",
        "FORKJOIN_CLIENT_URL",
        "FORKJOIN_CLIENT_API_KEY",
    ],
)
def test_what_kubernetes_and_our_tools_set_is_no_mistake(name):
    assert environment.read({name: "tcp://10.0.0.1:8000"}, own_flags()) == {}


def _shown(argv, environ):
    return {v.name: (v.value, v.origin) for v in effective(resolve(argv, environ))}


def test_each_value_is_shown_with_where_it_came_from(yaml):
    path = yaml("max-forks: 3\nport: 1025\nseed: 7\n")
    argv = ["--max-threads-running", "4", "--config", path, "--seed=8"]
    shown = _shown(argv, {"FORKJOIN_MODEL": "their/model", "FORKJOIN_MAX_TOTAL_TOKENS": "99"})
    assert shown == {
        "model": ("their/model", "FORKJOIN_MODEL"),
        "dialect": ("threadweaver", "default"),
        "max-threads-per-fork": ("no limit", "dialect threadweaver"),
        "max-forks": ("3", f"file {path}"),
        "max-tokens-per-thread": ("no limit", "dialect threadweaver"),
        "max-total-tokens": ("99", "FORKJOIN_MAX_TOTAL_TOKENS"),
        "join-ahead-tokens": ("128", "default"),
        "admission": ("family", "default"),
        "max-threads-running": ("4", "flag"),
        "slo-itl-ms": ("None", "default"),
        "admission-policy": ("None", "default"),
        "thread-policy": ("None", "default"),
        "prune-policy": ("None", "default"),
        "eviction-policy": ("None", "default"),
        "grouped-attention": ("auto", "default"),
        "grouped-graphs": ("piecewise", "default"),
        "draft-from": ("drafter", "default"),
        "log-format": ("text", "default"),
        "api-key-file": ("None", "default"),
        "open-routes": ("/health,/ready,/ping,/version,/metrics,/playground", "default"),
        "cache-salt": ("none", "default"),
        "max-queued-families": ("1024", "default"),
        "max-queued-threads": ("8192", "default"),
        "max-queued-work": ("4194304", "default"),
        "client-stall-s": ("60", "default"),
        "ready-timeout": ("15", "default"),
        "health-timeout": ("120", "default"),
        "max-body-mib": ("64", "default"),
        "max-bodies-mib": ("2048", "default"),
        "max-body-objects": ("20000", "default"),
        "max-request-threads": ("256", "default"),
        "max-request-tokens": ("None", "default"),
        "max-tree-tokens": ("1048576", "default"),
        "max-continued-tokens": ("0", "default"),
        "on-new-weights": ("finish", "default"),
        "no-playground": ("False", "default"),
        "max-kept-share": ("0.25", "default"),
        "max-keep-s": ("3600", "default"),
        "control-tokens-in-prompts": ("neutralise", "default"),
        "port": ("1025", f"file {path}"),
        "seed": ("8", "flag"),
    }


def test_every_flag_of_ours_is_shown_also_with_fork_join_off():
    for argv in ([], ["--dialect", "none"]):
        assert own_flags().keys() < _shown(argv, {}).keys()


def test_the_table_is_a_line_a_value():
    head, *rest = lines(effective(resolve(["m"], {})))
    assert head == "fork/join configuration (flag > environment > file > default):"
    assert rest[0].split() == ["model", "m", "flag"]


SECRETS = ["sk-abcdefgh12345678", "hf_abcdefgh12345678", "hunter2"]
WITH_SECRETS = [
    "--api-key",
    "hunter2",
    "--hf-token=hf_abcdefgh12345678",
    "--model-loader-extra-config",
    '{"aws_secret_access_key": "hunter2", "concurrency": 4, "nested": [{"password": "hunter2"}]}',
    "--otlp-traces-endpoint",
    "http://me:hunter2@collector:4317",
    "--additional-config",
    '{"theirs": {"token": "hunter2", "max_tokens": 9, "note": "use sk-abcdefgh12345678"}}',
    "--ssl-keyfile",
    "server.key",
]


def test_no_secret_is_shown():
    text = "\n".join(lines(effective(resolve(["m", *WITH_SECRETS], {}))))
    assert [s for s in SECRETS if s in text] == []
    assert "concurrency: 4" in text
    assert "ssl-keyfile" in text
    assert "server.key" in text


def test_vllms_log_of_its_arguments_shows_none_either(caplog):
    """Without the filter it does: of what is not called api_key or hf_token."""
    from vllm.entrypoints.launchers.launcher import log_non_default_args

    name, logged = import_module(log_non_default_args.__module__).logger.name, []
    assert name in redact.LOGGERS
    logger, handler = logging.getLogger(name), logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    args = resolve(["m", *WITH_SECRETS], {}).args
    logger.addHandler(handler)
    already = logger.filters.copy()
    logger.filters.clear()
    try:
        with caplog.at_level(logging.INFO, logger=name):
            log_non_default_args(args)
            redact.hide_in_logs()
            log_non_default_args(args)
    finally:
        logger.removeHandler(handler)
        logger.filters[:] = already
    leaking, hidden = logged
    assert "hunter2" in leaking
    assert [s for s in SECRETS if s in hidden] == []
    assert "'concurrency': 4" in hidden
    assert "'max_tokens': 9" in hidden


@pytest.mark.parametrize(
    ("protocol", "endpoint"),
    [("grpc", "http://me:hunter2@127.0.0.1:1"), ("http", "http://me:hunter2@127.0.0.1:99999/v1/traces")],
)
def test_opentelemetrys_log_of_what_it_cannot_export_shows_none_either(protocol, endpoint, caplog):
    exporters = import_module(f"opentelemetry.exporter.otlp.proto.{protocol}.trace_exporter")
    redact.hide_in_logs()
    tracing = TracerProvider()
    tracing.add_span_processor(
        SimpleSpanProcessor(exporters.OTLPSpanExporter(endpoint=endpoint, timeout=0.5))
    )
    tracing.get_tracer("test").start_span("lost").end()
    tracing.shutdown()
    assert "***@127.0.0.1" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=9, tokenizer='x', hf_token=None, skip_tokenizer_init=False, 'join_ahead_tokens': 128",
        "ssl_keyfile='server.key', enable_prompt_tokens_details=True, token_ids [1, 2]",
        "http://collector:4317/v1 and key=3 and num_tokens: 4",
    ],
)
def test_what_is_no_secret_is_left_alone(text):
    assert redact.hide(text) == text


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("{'api_key': ['a', 'b'], 'port': 1}", "{'api_key': '***', 'port': 1}"),
        ('{"s3_secret_access_key": "a\\"b"}', "{\"s3_secret_access_key\": '***'}"),
        ("Config(password='x', a=1)", "Config(password='***', a=1)"),
        ("Authorization: Bearer abc", "Authorization: '***' ***"),
        ("seen hf_abcdefgh1 here", "seen *** here"),
        ("to http://me:p@ss@host:1/a, http://host:2", "to http://***@host:1/a, http://host:2"),
        ("traces to me:secret@host:4317: lookup", "traces to ***@host:4317: lookup"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text, hidden):
    assert redact.hide(text) == hidden


@pytest.mark.parametrize(
    ("argv", "given", "space"),
    [
        ([], None, "1"),
        ([], "4", "4"),
        (["--kv-cache-memory-bytes", "1000000"], None, None),
        (["--gpu-memory-utilization", "0.5"], None, None),
    ],
)
def test_on_a_cpu_the_cache_is_a_gibibyte_unless_its_size_is_given(argv, given, space, monkeypatch):
    """vLLM takes the variable before the flags."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    seen = []
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", given or "")
    if given is None:
        monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    monkeypatch.setattr(ServeSubcommand, "validate", lambda self, args: None)
    monkeypatch.setattr(
        ServeSubcommand,
        "cmd",
        staticmethod(lambda args: seen.append(os.environ.get("VLLM_CPU_KVCACHE_SPACE"))),
    )
    main(["serve", "m", *argv])
    assert seen == [space]


@pytest.mark.parametrize(("given", "size"), [(None, "32"), ("7", "7")])
def test_outputs_are_handled_in_small_slices_unless_their_size_is_given(given, size, monkeypatch):
    from vllm.entrypoints.cli.serve import ServeSubcommand

    name, seen = "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", []
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(ServeSubcommand, "validate", lambda self, args: None)
    monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(lambda args: seen.append(os.environ[name])))
    main(["serve", "m"])
    assert seen == [size]
