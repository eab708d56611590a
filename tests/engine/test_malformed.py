"""Malformed output ends in the dialect's policy, never in an error or a lost block."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.engine

TWO = "<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: y</Outline>\n</Outlines>"
WELL = {"1": "a</Thread>", "2": "b</Thread>"}


def _run(engine, root, threads, after="</Parallel>\nend", **options):
    return engine.run([engine.prompt("q")], engine.scripted(root, threads, after, **options))[0]


@pytest.mark.parametrize(
    "root",
    ["<Parallel>\n</Outlines>go on", "<Outlines>no outline</Outlines>go on", "</Outlines></Outlines>go on"],
    ids=["no_block", "no_outline", "trigger_alone"],
)
def test_without_an_outline_the_model_carries_on(engine, root):
    answer = _run(engine, root, {})
    assert (answer.text, answer.finish_reason) == (root, "stop")


def test_duplicate_outlines_are_dropped(engine):
    root = "<Outlines><Outline>1: x</Outline><Outline>1: z</Outline><Outline>2: y</Outline></Outlines>"
    answer = _run(engine, root, WELL)
    assert answer.text == f"{root}\n<Thread>\n1:a</Thread><Thread>\n2:b</Thread>\n</Parallel>\nend"


def test_gaps_in_the_numbers_keep_their_numbers(engine):
    root = "<Outlines><Outline>1: x</Outline><Outline>3: y</Outline></Outlines>"
    answer = _run(engine, root, {"1": "a</Thread>", "3": "c</Thread>"})
    assert "<Thread>\n3:c</Thread>" in answer.text


@pytest.mark.parametrize("limit", [{"max_threads_per_fork": 1}, {"max_forks": 0}], ids=["threads", "forks"])
def test_over_a_limit_the_model_carries_on(engine, limit):
    answer = _run(engine, TWO + "on", {}, forkjoin=limit)
    assert answer.text == TWO + "on"


def test_a_thread_that_ends_by_eos_is_closed_and_ends_the_request(engine):
    answer = _run(engine, TWO, {"1": "a</Thread>", "2": "bb"})
    assert answer.text == f"{TWO}\n<Thread>\n1:a</Thread><Thread>\n2:bb\n</Thread>\n</Parallel>"
    assert answer.finish_reason == "stop"


def test_a_thread_over_its_budget_is_closed_and_ends_the_request(engine):
    answer = _run(
        engine, TWO, {"1": "aaaaaaaa</Thread>", "2": "b</Thread>"}, forkjoin={"max_tokens_per_thread": 3}
    )
    assert answer.text == f"{TWO}\n<Thread>\n1:aaa\n</Thread><Thread>\n2:b</Thread>\n</Parallel>"
    assert answer.finish_reason == "length"


def test_max_tokens_counts_the_threads_and_ends_the_family(engine):
    generated = len(engine.tokenizer.encode(TWO)) + 10
    answer = _run(
        engine, TWO, {"1": "a" * 40 + "</Thread>", "2": "b" * 40 + "</Thread>"}, max_tokens=generated
    )
    assert answer.finish_reason == "length"
    assert answer.text == f"{TWO}\n<Thread>\n1:aaaaa<Thread>\n2:bbbbb"


def test_control_tokens_inside_a_thread_are_text(engine):
    answer = _run(engine, TWO, {"1": f"{TWO}x</Thread>", "2": "b</Thread>"})
    assert answer.text == f"{TWO}\n<Thread>\n1:{TWO}x</Thread><Thread>\n2:b</Thread>\n</Parallel>\nend"


def test_a_stop_token_of_the_request_ends_the_answer_in_its_thread(engine):
    stop = engine.tokenizer.token_id("Z")
    threads = {"1": "aaaaaa</Thread>", "2": "bZ</Thread>", "3": "cccccccccccc</Thread>"}
    root = TWO.replace("</Outlines>", "<Outline>3: z</Outline></Outlines>")
    answer = _run(engine, root, threads, stop_token_ids=[stop])
    assert answer.text == f"{root}\n<Thread>\n1:aaaaaa</Thread><Thread>\n2:b"
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


def test_a_stop_string_inside_a_thread_ends_the_answer_there(engine):
    answer = _run(engine, TWO, {"1": "aaSTOPaaaa</Thread>", "2": "b" * 30 + "</Thread>"}, stop=["STOP"])
    assert answer.text == f"{TWO}\n<Thread>\n1:aa"
    assert answer.stop_reason == "STOP"


def test_several_forks_in_one_request(engine):
    again = f"</Parallel>{TWO}"
    script = engine.scripted(TWO, WELL, again)
    answer = engine.run([engine.prompt("q")], script)[0]
    # the script writes the same block after every join: 16 forks, then the limit
    assert answer.text.count("<Thread>") == 2 * 16
    assert answer.finish_reason == "stop"
