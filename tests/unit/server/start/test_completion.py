"""What a shell completes."""

from __future__ import annotations

import re
import subprocess

import pytest

from forkjoin_scheduler.dialects.files import builtin_names
from forkjoin_scheduler.errors import UsageError
from forkjoin_server.cli import USAGE, main
from forkjoin_server.start import completion
from forkjoin_server.start.flags import own_flags


@pytest.fixture(autouse=True)
def _no_other_arguments(monkeypatch):
    """vLLM's parser looks at the process's own."""
    monkeypatch.setattr("sys.argv", ["forkjoin"])


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What bash offers for the last of some words."""
    file = tmp_path_factory.mktemp("completion") / "forkjoin.bash"
    file.write_text(completion.script("bash"))
    program = """source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_forkjoin; printf '%s\\n' "${COMPREPLY[@]}" """

    def offered(*words):
        command = ["bash", "-c", program, "bash", str(file), "forkjoin", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return set(done.stdout.split())

    return offered


def test_the_first_word_is_any_command_of_the_usage(complete):
    named = re.findall(r"^(?:usage:)? +forkjoin (\w[\w|-]*)", USAGE, flags=re.M)
    commands = {command for names in named for command in names.split("|")}
    assert complete("") == commands
    assert {"serve", "doctor", "chat", "trace", "top", "completion"} < commands


def test_serve_takes_all_flags_ours_and_vllms(complete):
    offered = complete("serve", "--")
    assert {f"--{name}" for name in own_flags()} < offered
    assert {"--port", "--max-model-len", "--tensor-parallel-size"} < offered
    assert complete("doctor", "--jso") == {"--json"}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["keys", ""], {"new"}),
        (["dialects", "check", "m", ""], set(builtin_names())),
        (["completion", ""], set(completion.SHELLS)),
        (["bench", "rep"], {"report"}),
        (["trace", "x", "--s"], {"--svg"}),
    ],
)
def test_words_and_flags_of_commands_are_offered(complete, words, offered):
    assert complete(*words) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_told_the_same_flags(shell, capsys):
    main(["completion", shell])
    said = capsys.readouterr().out
    for word in ("max-forks", "tensor-parallel-size", "interval", "trace"):
        assert word in said


def test_without_vllm_our_own_flags_are_completed(monkeypatch):
    monkeypatch.setattr(completion, "find_spec", lambda name: name == "shtab" or None)
    said = completion.script("bash")
    assert "--max-forks" in said
    assert "--tensor-parallel-size" not in said


def test_the_package_that_writes_it_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setattr(completion, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"install vllm-forkjoin\[completion\]"):
        completion.script("bash")


@pytest.mark.parametrize("argv", [[], ["csh"], ["bash", "zsh"]])
def test_another_shell_is_refused(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["completion", *argv])
    assert "expected one of bash, zsh, fish" in capsys.readouterr().err
