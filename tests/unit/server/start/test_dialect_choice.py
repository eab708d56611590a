"""Which dialect is served where nobody names one, and how that is told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.settings import KEY
from forkjoin_server.cli import main
from forkjoin_server.start.configuration import resolve
from forkjoin_server.start.effective import effective
from tests.engine.renamed import model_for


@pytest.fixture(autouse=True)
def _no_other_arguments(monkeypatch):
    """vLLM's parser looks at the process's own."""
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])


@pytest.fixture
def model(tmp_path):
    def make(name):
        return str(model_for(name, lambda _: tmp_path))

    return make


def _tokenizer(folder, *dialects):
    tokens = dict.fromkeys(token for name in dialects for token in load(name).control_tokens)
    (folder / "added_tokens.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)} | {"<x>": 99}))
    return str(folder)


def _dialect(given):
    value = next(v for v in effective(given) if v.name == "dialect")
    return value.value, value.origin, given.args.additional_config.get(KEY, {}).get("dialect", {}).get("name")


def test_the_one_dialect_that_fits_is_served(model):
    given = resolve([model("npr")], {})
    assert _dialect(given) == ("npr", "the model's files", "npr")
    assert str(given.choice).startswith(
        "dialect npr, the only one that fits the model (its tags are added tok"
    )
    assert given.args.worker_cls.endswith("worker.ForkJoinWorker")


@pytest.mark.parametrize(
    ("spoken", "told"),
    [
        ((), "dialect threadweaver, the default: no dialect fits the model"),
        (
            ("npr", "multiverse"),
            "dialect threadweaver, the default: multiverse, npr fit the model, choose one with --dialect",
        ),
    ],
    ids=["none", "several"],
)
def test_where_not_exactly_one_fits_the_default_is_served_and_those_that_fit_are_named(
    spoken, told, tmp_path
):
    given = resolve([_tokenizer(tmp_path, *spoken)], {})
    assert _dialect(given) == ("threadweaver", "default", "threadweaver")
    assert str(given.choice) == told


def test_a_model_of_which_nothing_can_be_read_is_served_with_the_default(tmp_path):
    given = resolve([str(tmp_path / "nothing")], {})
    assert _dialect(given)[2] == "threadweaver"
    assert "the default: there are no tokenizer's files of " in str(given.choice)


def test_a_dialect_that_is_named_is_served_and_the_files_are_not_read(model, tmp_path, monkeypatch):
    monkeypatch.setattr("forkjoin_server.start.dialect_choice.read", None)
    npr, config = model("npr"), tmp_path / "serve.yaml"
    config.write_text("dialect: apr\n")
    for argv, environ, name in (
        (["--dialect", "multiverse"], {}, "multiverse"),
        ([], {"FORKJOIN_DIALECT": "hpd"}, "hpd"),
        (["--config", str(config)], {}, "apr"),
        (["--dialect", "none"], {}, None),
    ):
        given = resolve([npr, *argv], environ)
        assert _dialect(given)[2] == name
        assert given.choice is None


def test_the_tokenizer_that_is_served_is_the_one_that_is_read(model, tmp_path):
    (tmp_path / "other").mkdir()
    other = _tokenizer(tmp_path / "other", "multiverse")
    assert _dialect(resolve([model("npr"), "--tokenizer", other], {}))[0] == "multiverse"


def test_a_server_says_in_one_line_what_it_picked(model, monkeypatch, capsys):
    monkeypatch.setattr("forkjoin_server.cli.leave", lambda status: None)
    monkeypatch.setattr("forkjoin_server.vllm_seam.start.serving.run_serve", lambda args: None)
    main(["serve", model("npr")])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("forkjoin: ")]
    assert len(told) == 1
    assert told[0].startswith("forkjoin: dialect npr, the only one that fits the model (")


def test_a_model_is_inferred_without_vllm_or_torch(model):
    code = (
        "import sys; from forkjoin_server.cli import main; main(['dialects', 'infer', sys.argv[1]]);"
        "assert not {'torch', 'vllm', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, model("npr")], check=True, timeout=60)


def test_infer_says_what_speaks_for_and_against_each_dialect(model, capsys):
    main(["dialects", "infer", model("npr")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "npr: fits"
    assert lines[1].startswith("  for      its tags are added tokens: </guideline>, ")
    at = lines.index("hpd: does not fit")
    assert lines[at + 1] == "  against  no added tokens: <FORK>, <CHILD>"
    assert "  nothing speaks for it or against it" in lines
    assert lines[-1] == "npr alone fits"


def test_infer_reads_a_transcript_and_a_dialect_of_ones_own(tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\nsource: ours\ntrigger: '[GO]'\noutline: {opens: '[SPLIT]', pattern: '(?P<number>[0-9]+)'}\n"
        "thread: {header: '[TASK {n}]', end: '[DONE]'}\n"
    )
    said = tmp_path / "said.txt"
    said.write_text("[SPLIT]1 2[GO][TASK 1]a[DONE][TASK 2]b[DONE]")
    main(["dialects", "infer", str(said), str(own)])
    assert capsys.readouterr().out.splitlines()[-1] == "own alone fits"
    with pytest.raises(SystemExit) as ended:
        main(["dialects", "infer", str(said)])
    assert ended.value.code == 1
    assert capsys.readouterr().out.splitlines()[-1] == "expected one dialect that fits, got none"


def test_infer_names_all_that_fit_and_ends_with_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["dialects", "infer", _tokenizer(tmp_path, "npr", "multiverse", "parallel-r1")])
    assert ended.value.code == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "expected one dialect that fits, got multiverse, npr, parallel-r1"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            [],
            "dialects infer: expected a MODEL (a folder or a name), or the FILE of a transcript, got nothing",
        ),
        (
            ["/nowhere/x"],
            "dialects infer: expected the FILE of a transcript, or a MODEL with a tokenizer (a fo",
        ),
        ([sys.executable], "dialects infer: expected a readable text in UTF-8, got "),
        ([__file__, "nope"], "or the path of a YAML file, got 'nope'"),
    ],
    ids=["nothing", "nowhere", "no_text", "no_dialect"],
)
def test_what_can_not_be_inferred_is_said_in_a_sentence(argv, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["dialects", "infer", *argv])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
