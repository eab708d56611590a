"""What ``forkjoin bench votes`` says of votes."""

from __future__ import annotations

import argparse
import json
import random
import re

import pytest

from forkjoin_bench.votes import command
from forkjoin_bench.votes.command import COLUMNS, is_same, num_same, rows
from forkjoin_bench.votes.measure import WAYS, Voted, _id_of
from forkjoin_bench.votes.questions import SUBJECTS
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.request.options import parse_options


def _vote(way: str, seed: int, tokens: int, *, index: int = 0, result: str = "7", **left_out: int) -> Voted:
    return Voted(way, seed, 2.0, 10, tokens, 5, index, result, [1, 2], left_out)


def test_a_row_holds_means_of_votes_against_those_that_wait_for_all():
    found = {
        "all": [_vote("all", 0, 100), _vote("all", 1, 300)],
        "early": [_vote("early", 0, 50, cut=3), _vote("early", 1, 50, index=2, not_started=1)],
    }
    assert [len(row) for row in rows(found)] == [len(COLUMNS)] * 2
    _, early = rows(found)
    assert early == ["early", "50", "0.25", "10", "2.00", "1.00", "1.5", "0.5", "0.0", "1/2", "2/2"]
    assert (num_same(found["all"], found["early"]), is_same(found, "early"), is_same(found, "waves")) == (
        1,
        False,
        True,
    )


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_a_request_that_is_taken(way):
    for subject in SUBJECTS.values():
        assert parse_options({"best_of": 3, "vote": subject.vote, **WAYS[way]}).forks_at_prompt


@pytest.mark.parametrize(("model", "text"), [("embedded", "a=1728 (8)"), ("smollm2", "So 60 - 4 = 1728.")])
def test_the_answer_of_a_thread_is_found(model, text):
    assert re.findall(SUBJECTS[model].vote, text)[-1] == "1728"
    assert re.search(r"\d", SUBJECTS[model].ask(random.Random(1)))


def test_no_request_of_a_vote_has_an_id_that_begins_as_that_of_another():
    ids = [_id_of(way, seed) for way in WAYS for seed in range(120)]
    assert not [(a, b) for a in ids for b in ids if a is not b and b.startswith(a)]


def _arguments(tmp_path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["--out", str(tmp_path), *more])
    args.command = "forkjoin bench votes"
    return args


@pytest.mark.parametrize("flag", ["--votes", "--best-of", "--at-once"])
def test_what_can_not_be_measured_is_refused(tmp_path, flag):
    with pytest.raises(UsageError, match=flag):
        command.main(_arguments(tmp_path, flag, "0"))


@pytest.mark.engine
def test_votes_are_run_in_every_way_and_the_lossless_ones_answer_as_all(tmp_path, capsys):
    flags = ["--votes", "2", "--best-of", "4", "--at-once", "2", "--slots", "4", "--ways", *WAYS]
    command.main(_arguments(tmp_path, *flags))
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "votes-embedded.json").read_text())["runs"]["2"]
    assert set(found) == set(WAYS)
    assert all(len(votes) == 2 for votes in found.values())
    for way in ("early", "waves"):
        for early, whole in zip(found[way], found["all"], strict=True):
            assert (early["index"], early["result"], early["token_ids"]) == (
                whole["index"],
                whole["result"],
                whole["token_ids"],
            )
            assert 0 < early["tokens"] <= whole["tokens"]
    assert not any(vote["left_out"] for vote in found["all"])
    assert any(vote["left_out"] for way in ("early", "waves") for vote in found[way])
    assert said.count("\n| ") == 1 + len(WAYS)
