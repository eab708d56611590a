"""The progressive join: threads that have ended are prefilled while slower ones still decode."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.engine

FOUR = "<Outlines>" + "".join(f"<Outline>{n}: x</Outline>" for n in range(1, 5)) + "</Outlines>"
LENGTHS = [40, 25, 60, 200]


@pytest.fixture(scope="module")
def ahead():
    from tests.engine.harness import Engine

    return Engine(join_ahead_tokens=16)


def _run(engine, lengths, **options):
    threads = {str(n): "abcd"[n - 1] * length + "</Thread>" for n, length in enumerate(lengths, 1)}
    engine.steps.clear()
    params = engine.scripted(FOUR, threads, "</Parallel>\n", **options)
    (answer,) = engine.run([engine.prompt("q")], params)
    assert engine.snapshot() == engine.baseline
    return answer


def test_what_is_prefilled_ahead_changes_no_token_and_is_not_prefilled_again(ahead, engine, events):
    told = events
    answer = _run(ahead, LENGTHS)
    early = sum(e["prefilled_tokens"] for e in told("joined_ahead"))
    late = [e["prefilled_tokens"] for e in told("joined")]
    plain = _run(engine, LENGTHS)
    assert answer.token_ids == plain.token_ids
    header = len(engine.tokenizer.encode("<Thread>\n2:"))
    # threads 2 and 3 whole, with the end tag of the first, were done before the last had ended
    assert early == 1 + (header + 26) + (header + 61)
    assert late == [header + 201 + 1]
    assert early + late[0] == [e["prefilled_tokens"] for e in told("joined")][-1]


def test_no_step_prefills_more_ahead_than_it_may(ahead):
    _run(ahead, LENGTHS)
    fills = [sum(n for i, n in s.items() if "#fill" in i) for s in ahead.steps]
    assert 0 < max(fills) <= 16


def test_threads_decode_in_every_step_that_prefills_ahead(ahead):
    _run(ahead, LENGTHS)
    for step in ahead.steps:
        if any("#fill" in i for i in step):
            assert any(i.endswith("#3") for i in step)


def test_a_join_that_comes_while_it_is_prefilled_takes_over_what_is_there(ahead, engine, events):
    lengths = [20, 120, 3, 126]  # the second ends just before the last: its prefill is under way at the join
    answer = _run(ahead, lengths)
    early = sum(e["prefilled_tokens"] for e in events("joined_ahead"))
    late = events("joined")[-1]["prefilled_tokens"]
    assert answer.token_ids == _run(engine, lengths).token_ids
    assert early > 0
    assert early + late == events("joined")[-1]["prefilled_tokens"]


def test_nothing_is_prefilled_for_a_join_at_which_the_request_ends(ahead, events):
    _run(ahead, [30, 60, 5, 100], forkjoin={"max_tokens_per_thread": 20})
    assert events("joined_ahead") == []


def test_families_prefilled_ahead_share_the_tokens_of_a_step(ahead):
    threads = {str(n): "abcd"[n - 1] * length + "</Thread>" for n, length in enumerate(LENGTHS, 1)}
    ahead.steps.clear()
    params = ahead.scripted(FOUR, threads, "</Parallel>\n")
    ahead.run([ahead.prompt(f"q{i}") for i in range(4)], params)
    fills = [sum(n for i, n in s.items() if "#fill" in i) for s in ahead.steps]
    assert 0 < max(fills) <= 16


@pytest.mark.parametrize("num_steps", range(70, 260, 21))
def test_an_abort_in_the_middle_of_it_leaves_nothing(ahead, num_steps):
    threads = {str(n): "abcd"[n - 1] * length + "</Thread>" for n, length in enumerate(LENGTHS, 1)}
    request_id = ahead.add(ahead.prompt("q"), ahead.scripted(FOUR, threads, "</Parallel>\n"))
    for _ in range(num_steps):
        ahead.core.step()
    ahead.core.abort_request([request_id])
    ahead.drain()
    assert ahead.snapshot() == ahead.baseline
