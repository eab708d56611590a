from __future__ import annotations

import pytest
from msgspec.structs import asdict, replace
from openai.lib.streaming._deltas import accumulate_delta

from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import (
    FamilyEnded,
    Forked,
    ForkLatency,
    Joined,
    NewThread,
    Progress,
    Refused,
    ThreadEnded,
    Tokens,
    Voted,
    Waiting,
)
from forkjoin_server.answer.threads import ThreadLog

FORKED = Forked(
    parent_index=-1,
    threads=[NewThread(index=0, number="1", title="x"), NewThread(index=1, number="2.1", title="")],
    shared_tokens=0,
)
ENDED = FamilyEnded(family="a", num_threads=2, critical_path_tokens=5, total_tokens=8, surplus_tokens=3)


def _so_far(**counts):
    """What the family that ``ENDED`` had come to before."""
    return Progress(**asdict(ENDED) | counts)


@pytest.fixture
def log():
    return ThreadLog("k")


def test_all_children_of_a_fork_are_announced_at_once_in_increasing_order(log):
    entries = log.delta(FORKED)
    assert [(e["index"], e["id"], e["content"]) for e in entries] == [(0, "th_k_0", ""), (1, "th_k_1", "")]


def test_a_thread_without_a_title_is_called_by_its_number(log):
    assert [e["title"] for e in log.delta(FORKED)] == ["x", "2.1"]


def test_a_thread_names_the_thread_that_forked_it(log):
    assert {e["parent_id"] for e in log.delta(FORKED)} == {"root"}
    inner = NewThread(index=2, number="1.1", title="y")
    (entry,) = log.delta(replace(FORKED, parent_index=1, threads=[inner]))
    assert (entry["parent_id"], entry["id"]) == ("th_k_1", "th_k_2")


def test_only_content_repeats_and_the_log_gathers_it(log):
    log.delta(FORKED)
    assert log.delta(Tokens(index=1, text="ab", token_ids=[])) == [{"index": 1, "content": "ab"}]
    assert log.delta(Tokens(index=1, text="c", token_ids=[])) == [{"index": 1, "content": "c"}]
    assert [t["content"] for t in log.threads] == ["", "abc"]


def test_what_a_thread_waits_for_is_told_until_it_runs_and_not_gathered(log):
    log.delta(FORKED)
    assert log.delta(Waiting(index=1, waits_for="turn")) == [{"index": 1, "waits_for": {"type": "turn"}}]
    assert log.delta(Waiting(index=1, waits_for=None)) == [{"index": 1, "waits_for": {"type": "nothing"}}]
    assert "waits_for" not in log.threads[1]


def test_the_sdks_helper_keeps_the_last_thing_that_a_thread_waits_for(log):
    chunks = [FORKED, *(Waiting(index=1, waits_for=wait) for wait in ("wave", "turn", None))]
    gathered: dict = {}
    for chunk in chunks:
        gathered = accumulate_delta(gathered, {"threads": log.delta(chunk)})
    assert [thread.get("waits_for") for thread in gathered["threads"]] == [None, {"type": "nothing"}]


def test_an_announced_entry_does_not_change_when_its_thread_goes_on(log):
    announced = log.delta(FORKED)
    log.delta(Tokens(index=0, text="ab", token_ids=[]))
    assert announced[0]["content"] == ""


def test_a_token_without_text_yet_says_nothing(log):
    log.delta(FORKED)
    assert log.delta(Tokens(index=0, text="", token_ids=[])) == []


@pytest.mark.parametrize(
    ("reason", "finish_reason"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("request_stop", "stop"),
        ("length", "length"),
        ("refused", "length"),
        ("cancelled", "length"),
        ("cut", "cut"),
        ("not_started", "not_started"),
        ("pruned", "pruned"),
        ("client_cancelled", "cancelled"),
    ],
)
def test_a_threads_end_reads_as_openais_finish_reason_with_its_own_usage(log, reason, finish_reason):
    log.delta(FORKED)
    event = ThreadEnded(index=1, reason=reason, num_tokens=7)
    end = {"finish_reason": finish_reason, "usage": {"completion_tokens": 7}}
    assert log.delta(event) == [{"index": 1, **end}]
    assert log.threads[1].items() >= end.items()


@pytest.mark.parametrize(
    "event",
    [
        Joined(parent_index=-1, prefilled_tokens=1),
        Refused(parent_index=-1, reason="stray_tag", policy="swap"),
        ForkLatency(seconds=1.0),
    ],
)
def test_other_events_are_not_shown(log, event):
    log.delta(FORKED)
    before = [dict(t) for t in log.threads]
    assert log.delta(event) == []
    assert log.threads == before


def test_injected_tokens_are_taken_out_of_the_usage_and_the_prompt_is_not(log):
    log.delta(ENDED)
    usage = log.correct_usage({"prompt_tokens": 10, "completion_tokens": 11, "total_tokens": 21})
    assert usage == {
        "prompt_tokens": 10,
        "completion_tokens": 8,
        "total_tokens": 18,
        "forkjoin": {"num_threads": 2, "critical_path_tokens": 5, "total_tokens": 8},
    }


def test_a_message_has_output_tokens_and_no_total(log):
    log.delta(ENDED)
    usage = log.correct_usage({"input_tokens": 10, "output_tokens": 11})
    assert usage == {"input_tokens": 10, "output_tokens": 8, "forkjoin": usage["forkjoin"]}


def test_the_usage_of_a_request_without_a_family_is_vllms_own(log):
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert log.correct_usage(usage) is usage


def test_a_request_without_a_family_has_no_threads_for_whoever_asks():
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    forkjoin = {"num_threads": 0, "critical_path_tokens": 2, "total_tokens": 2}
    assert ThreadLog("k", is_wanted=True).correct_usage(usage) == usage | {"forkjoin": forkjoin}


@pytest.mark.parametrize(("answer", "num_given"), [(None, 6), (1, 3)])
def test_the_usage_of_answers_that_go_on_from_a_tree_says_what_each_was_given(answer, num_given):
    log = ThreadLog("k", num_answers=2, num_choices=2, num_given=3)
    usage = log.correct_usage({"completion_tokens": 9}, answer)
    assert usage["completion_tokens"] == 9, "given tokens are counted as any"
    counts = {"num_threads": 0, "critical_path_tokens": 9, "total_tokens": 9}
    assert usage["forkjoin"] == counts | {"given_tokens": num_given}


@pytest.mark.parametrize("result", ["42", None])
def test_the_outcome_of_a_vote_stands_in_the_usage_which_counts_all_who_voted(log, result):
    log.delta(FORKED)
    assert log.delta(Voted(index=1, result=result)) == []
    log.delta(replace(ENDED, surplus_tokens=-4))
    # vLLM knows the tokens of the winner only
    usage = log.correct_usage({"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14})
    assert (usage["completion_tokens"], usage["total_tokens"]) == (8, 18)
    assert usage["forkjoin"]["vote"] == {
        "index": 1,
        "result": result,
        "cut": [],
        "not_started": [],
        "pruned": [],
        "cancelled": [],
    }
    assert [sorted(t) for t in log.threads] == [["content", "id", "index", "parent_id", "title"]] * 2


def test_a_vote_names_the_threads_that_it_did_not_wait_for(log):
    log.delta(FORKED)
    forked = [NewThread(index=i, number="", title="") for i in range(2, 5)]
    log.delta(replace(FORKED, threads=forked))
    for index, reason in enumerate(["not_started", "cut", "stop", "pruned", "client_cancelled"]):
        log.delta(ThreadEnded(index=index, reason=reason, num_tokens=0))
    log.delta(Voted(index=2, result="42"))
    log.delta(ENDED)
    vote = log.correct_usage({"completion_tokens": 4})["forkjoin"]["vote"]
    assert vote == {
        "index": 2,
        "result": "42",
        "cut": [1],
        "not_started": [0],
        "pruned": [3],
        "cancelled": [4],
    }


def test_of_several_answers_no_vote_is_told():
    log = ThreadLog("k", num_answers=2)
    log.delta(Voted(index=1, result="42"))
    log.delta(ENDED)
    assert "vote" not in log.correct_usage({"completion_tokens": 4})["forkjoin"]


def test_a_families_later_counts_take_the_place_of_its_earlier_ones_and_families_add_up(log):
    log.delta(_so_far(total_tokens=4, surplus_tokens=1))
    log.delta(replace(ENDED, family="b"))
    usage = log.correct_usage({"completion_tokens": 16})
    assert usage["forkjoin"] == {"num_threads": 4, "critical_path_tokens": 10, "total_tokens": 12}
    log.delta(ENDED)
    assert log.correct_usage({"completion_tokens": 22})["completion_tokens"] == 16


def test_tokens_behind_what_a_family_has_said_last_count_one_step_each(log):
    """vLLM says in each chunk of a stream how many tokens there are by then, the family at its events only."""
    log.delta(_so_far())
    usage = log.correct_usage({"completion_tokens": 14}, 0)
    assert usage["completion_tokens"] == 11
    assert usage["forkjoin"] == {"num_threads": 2, "critical_path_tokens": 8, "total_tokens": 11}


def test_answers_that_did_not_fork_count_beside_those_that_did():
    log = ThreadLog("k", num_answers=3)
    log.delta(ENDED)
    usage = log.correct_usage({"completion_tokens": 11 + 7})
    assert usage["completion_tokens"] == usage["forkjoin"]["total_tokens"] == 8 + 7
    assert usage["forkjoin"]["critical_path_tokens"] == 5 + 7


@pytest.mark.parametrize(
    ("shape", "family", "answer"),
    [
        ((2, 2), "1_chatcmpl-a-k-0123abcd", 1),
        ((2, 2), "0_chatcmpl-a-k-12345678", 0),
        ((4, 2), "1_cmpl-a-k-1-0123abcd", 3),
        ((2, 1), "cmpl-a-k-1-0123abcd", 1),
        ((1, 1), "chatcmpl-7_a-k-12345678", 0),
    ],
)
def test_a_chunk_of_one_answer_counts_that_answers_family(shape, family, answer):
    log = ThreadLog("k", *shape)
    log.delta(replace(ENDED, family="9_other-k-9-0123abcd"))
    log.delta(replace(ENDED, family=family, total_tokens=4, critical_path_tokens=4, surplus_tokens=1))
    if shape == (1, 1):
        log.families.pop("9_other-k-9-0123abcd")
    assert log.correct_usage({"completion_tokens": 5}, answer)["completion_tokens"] == 4


def test_threads_that_a_stop_string_cut_end_with_the_answer(log):
    log.delta(FORKED)
    log.delta(Tokens(index=1, text="ab", token_ids=[1, 2]))
    log.delta(ThreadEnded(index=0, reason=ThreadEnd.STOP, num_tokens=7))
    end = {"finish_reason": "length", "usage": {"completion_tokens": 2}}
    assert log.cut_open() == [{"index": 1, **end}]
    assert [t["finish_reason"] for t in log.threads] == ["stop", "length"]
    assert log.cut_open() == []


def test_entries_of_tokens_out_hold_token_ids_and_text():
    log = ThreadLog("k", has_token_ids=True)
    announced = log.delta(FORKED)
    assert log.delta(Tokens(index=1, text="", token_ids=[7])) == [
        {"index": 1, "content": "", "token_ids": [7]}
    ]
    log.delta(Tokens(index=1, text="ab", token_ids=[8, 9]))
    assert (log.threads[1]["content"], log.threads[1]["token_ids"]) == ("ab", [7, 8, 9])
    assert announced[1]["token_ids"] == []
