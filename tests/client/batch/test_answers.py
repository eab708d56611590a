from __future__ import annotations

import errno
import itertools
import json
import os
import random
from pathlib import Path

import pytest

from forkjoin.batch.answers import Answers, is_answer
from forkjoin.batch.lines import BadBatch, Line

LINES = [Line(name, "/v1/completions", b"{}") for name in ("a", "b", "ü")]


def _row(line, status=200, text="x"):
    response = {"status_code": status, "request_id": "r", "body": {"text": text}}
    return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": None}


A, B, U = map(_row, LINES)
FAILED = _row(LINES[1], 400)
LOST = A | {"response": None, "error": {"code": "connection_lost", "message": "m"}}


def _text(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "out.jsonl"


def test_rows_are_in_the_file_when_they_are_added_and_the_next_run_knows_them(path):
    with Answers(path, LINES) as answers:
        assert answers.answered == set()
        answers.append(U)
        assert path.read_text() == _text(U)
        answers.append(A)
    with Answers(path, LINES) as answers:
        assert answers.answered == {"ü", "a"}
        answers.append(B)
    assert path.read_text() == _text(U, A, B)


@pytest.mark.parametrize(
    ("before", "after", "answered"),
    [
        ("", "", set()),
        (_text(A, U), _text(A, U), {"a", "ü"}),
        (_text(A, FAILED, U), _text(A, U), {"a", "ü"}),
        (_text(LOST), "", set()),
        (_text(A, B)[:-20], _text(A), {"a"}),
        (_text(A) + _text(B)[:1], _text(A), {"a"}),
        (_text(A, B)[:-1], _text(A, B), {"a", "b"}),
        (_text(FAILED)[:-1], "", set()),
        (_text(A, _row(LINES[0], text="again"), U), _text(A, U), {"a", "ü"}),
        (_text(_row(Line("gone", "/", b""), 400)), "", set()),
    ],
    ids=[
        "new", "whole", "a_failed_one", "a_lost_one", "a_torn_one", "hardly_begun", "only_its_end_is_torn",
        "a_failed_one_whose_end_is_torn", "answered_twice", "failed_and_not_asked_any_more",
    ],
)  # fmt: skip
def test_answers_stay_as_they_are_and_all_else_of_an_earlier_run_goes(before, after, answered, path):
    path.write_text(before)
    with Answers(path, LINES) as opened:
        assert opened.answered == answered
    assert path.read_text() == after
    assert os.listdir(path.parent) == [path.name]


def test_wherever_a_row_is_torn_those_before_it_stay(path):
    row = _text(A).encode()
    for end in range(1, len(row)):
        path.write_bytes(_text(U).encode() + row[:end])
        with Answers(path, LINES) as answers:
            answers.append(B)
        kept = ["ü", "b"] if end < len(row) - 1 else ["ü", "a", "b"]
        assert [json.loads(row)["custom_id"] for row in path.read_text().splitlines()] == kept


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("notes\n", "out.jsonl:1: expected an answer that forkjoin run-batch wrote, got notes: choose another"),
        ("notes", "out.jsonl:1: expected an answer that forkjoin run-batch wrote, got notes: "),
        ("\n" + _text(A), "out.jsonl:1: expected an answer that "),
        (_text(A) + '{"id": "batch_req_\n' + _text(B), "out.jsonl:2: expected an answer that "),
        (_text(A | {"id": "vllm-1"}), "out.jsonl:1: expected an answer that forkjoin run-batch wrote, got {"),
        (_text(A | {"custom_id": 1}), "out.jsonl:1: expected an answer that forkjoin run-batch wrote, got {"),
        (_text(A, _row(Line("z", "/", b""))), 'out.jsonl:2: expected the answer to .* got that to "z", which is'),
        (_text(_row(Line("a", "/v1/completions", b'{"n": 1}'))), "or asks for something else now: choose"),
    ],
    ids=["text", "a_word", "empty_line", "torn_inside", "vllms", "number", "anothers", "changed"],
)  # fmt: skip
def test_a_file_that_is_not_the_output_of_this_input_is_an_error_and_stays(text, said, path):
    path.write_text(text)
    with pytest.raises(BadBatch, match=said):
        Answers(path, LINES)
    assert path.read_text() == text
    path.unlink()
    Answers(path, LINES).close()  # which nobody has locked


def test_a_run_finds_a_file_that_another_one_writes(path):
    path.write_text(_text(FAILED))
    said = "expected a file that no other run writes"
    with Answers(path, LINES), pytest.raises(BadBatch, match=said):
        Answers(path, LINES)
    Answers(path, LINES).close()


def test_what_is_no_file_to_write_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "out", Path("/dev/null")):
        with pytest.raises(BadBatch, match="--output-file: expected a file"):
            Answers(path, LINES)


def test_a_link_and_the_modes_of_a_file_stay(path, tmp_path):
    path.write_text(_text(FAILED, A))
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    with Answers(link, LINES):
        pass
    assert link.is_symlink()
    assert path.read_text() == _text(A)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_row_that_has_no_room_leaves_no_half_line(path, monkeypatch):
    with Answers(path, LINES) as answers:
        answers.append(A)
        write = os.write

        def half(fd, data):
            monkeypatch.setattr(os, "write", full)
            return write(fd, data[:10])

        def full(fd, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            answers.append(B)
        assert path.read_text() == _text(A)
        monkeypatch.setattr(os, "write", write)
        answers.append(B)
    assert path.read_text() == _text(A, B)


def test_whatever_ends_the_runs_and_where_each_request_has_its_answer_once_in_the_end(path):
    lines = [Line(str(n), "/v1/completions", b"{}") for n in range(20)]
    chance = random.Random(1)
    ever: dict[str, str] = {}
    for num_runs in itertools.count():
        with Answers(path, lines) as answers:
            assert answers.answered >= ever.keys()
            pending = [line for line in lines if line.custom_id not in answers.answered]
            if not pending:
                break
            for line in chance.sample(pending, min(len(pending), 4)):
                row = _row(line, chance.choice([200, 500]), text=str(num_runs))
                answers.append(row)
                if is_answer(row):
                    ever[line.custom_id] = json.dumps(row)
        if torn := chance.choice([b"", b'{"id": "batch_re']):
            with path.open("ab") as file:
                file.write(torn)
    assert num_runs > 5
    assert sorted(path.read_text().splitlines()) == sorted(ever.values())
