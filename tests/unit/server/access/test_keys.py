from __future__ import annotations

import re

import pytest

from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.redact import HIDDEN, hide
from forkjoin_server.access.keys import Key, KeyRing, digest_of, line_of, new_key, read, unnamed
from forkjoin_server.cli import main
from forkjoin_server.start.configuration import resolve

HASH = "ab" * 32


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "keys.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_what_keys_new_prints_is_a_line_of_the_file_and_the_key_apart(capsys, written):
    main(["keys", "new", "alice"])
    printed = capsys.readouterr()
    (key,) = re.findall(r"sk-fj-[\w-]+", printed.err)
    assert key not in printed.out
    ring = KeyRing(read(written(printed.out)))
    assert ring.find(key).name == "alice"


@pytest.mark.parametrize("argv", [[], ["a", "b"], ["a/b"], ["-x"], ["a" * 65], [""]])
def test_a_name_that_cannot_be_is_refused_and_no_key_is_made(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["keys", "new", *argv])
    assert ended.value.code == 2
    assert "sk-fj-" not in str(capsys.readouterr())


def test_two_keys_are_never_alike_and_logs_hide_them():
    first, second = new_key(), new_key()
    assert first != second
    assert hide(f"it was {first}, {second}") == f"it was {HIDDEN}, {HIDDEN}"


def test_a_key_has_the_limits_that_the_file_gives_it(written):
    (key,) = read(
        written(
            f"a: {{sha256: {HASH}, max_families: 3, max_queued_tokens: 500, weight: 2.5, "
            "max_kept_tokens: 900}\n"
        )
    )
    assert key == Key("a", bytes.fromhex(HASH), 3, 500, 2.5, 900)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least one key"),
        ("- a", "at least one key by its name .* got list"),
        ("a: b: c", "a YAML file"),
        (f"a: {{sha256: {HASH}}}\na: {{sha256: {HASH}}}\n", "each key once"),
        (f"a: {{sha256: {HASH}}}\nb: {{sha256: {HASH}}}\n", "b: expected a key of its own, got that of a"),
        ("a: secret", "a': expected {sha256: …}, got str"),
        ("a: {}", r"a\.sha256: expected this field, got none"),
        ("a: {sha256: abc}", r"a\.sha256"),
        (f"a: {{sha256: {HASH.upper()}}}", r"a\.sha256"),
        (f"a: {{sha256: {HASH}, max_familes: 3}}", r"a\.max_familes: unknown key"),
        (f"a: {{sha256: {HASH}, max_families: 0}}", r"a\.max_families"),
        (f"a: {{sha256: {HASH}, max_families: true}}", r"a\.max_families"),
        (f"a: {{sha256: {HASH}, weight: 0}}", r"a\.weight"),
        (f"a: {{sha256: {HASH}, weight: .nan}}", r"a\.weight"),
        (f"a b: {{sha256: {HASH}}}", "expected a name"),
        (f"1: {{sha256: {HASH}}}", "expected a name"),
        ("[" * 5000, "a YAML file"),
        ("\x00", "a YAML file"),
    ],
)
def test_a_file_that_is_not_one_of_keys_is_refused_by_what_is_wrong(text, said, written):
    with pytest.raises(UsageError, match=said) as caught:
        read(written(text))
    assert HASH not in str(caught.value)
    assert HASH.upper() not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    (tmp_path / "raw").write_bytes(b"\xff\xfe")
    for name in ("missing", "raw", "."):
        with pytest.raises(UsageError, match="--api-key-file: expected a YAML file of keys"):
            read(str(tmp_path / name))


@pytest.mark.parametrize("text", ["", "k", "key ", " key", "KEY", "key\x00", "kéy", "\ud800"])
def test_only_the_key_itself_is_found(text):
    ring = KeyRing(unnamed([digest_of("key"), digest_of("other")]))
    assert ring.find(text) is None
    assert ring.find("key").name == "(api-key 1)"


def test_a_line_holds_no_key():
    key = new_key()
    assert key not in line_of("a", key)


def test_a_weight_is_refused_where_nothing_is_shared_out_by_it(written, monkeypatch):
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])
    plain, heavy = written(line_of("a", "k")), f"b: {{sha256: {HASH}, weight: 2}}\n"
    resolve(["--dialect", "none", "--api-key-file", plain], {})
    path = written(line_of("a", "k") + "\n" + heavy)
    resolve(["--api-key-file", path], {})
    with pytest.raises(
        UsageError, match=r"b: expected no weight, got 2: with --dialect none .* serve with a"
    ):
        resolve(["--dialect", "none", "--api-key-file", path], {})


@pytest.mark.parametrize("flags", [["--grpc"], ["--grpc-port", "50051"]])
@pytest.mark.parametrize("given", ["flag", "variable", "file"])
def test_keys_are_refused_beside_a_door_that_asks_for_none(flags, given, written, monkeypatch):
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    resolve(flags, {})
    if given == "variable":
        monkeypatch.setenv("VLLM_API_KEY", "k")
    file = ["--api-key-file", written(line_of("a", "k"))]
    more = {"flag": ["--api-key", "k"], "variable": [], "file": file}[given]
    with pytest.raises(UsageError, match="--grpc: expected no API keys"):
        resolve([*flags, *more], {})
