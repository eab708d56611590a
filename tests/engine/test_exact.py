"""Fork/join gives, token for token, what the same protocol gives on plain requests."""

from __future__ import annotations

import pytest

from tests.engine.conftest import worksheets

pytestmark = pytest.mark.engine


def test_two_hundred_greedy_answers_equal_the_client_side_reference(engine):
    prompts = [engine.prompt(s.prompt) for s in worksheets(200)]
    answers = engine.run(prompts, engine.params())
    assert [a.token_ids for a in answers] == engine.reference(prompts)
    assert sum("</Parallel>" in a.text for a in answers) > 100


def test_a_request_alone_equals_the_same_request_in_a_full_batch(engine):
    prompts = [engine.prompt(s.prompt) for s in worksheets(12, seed=3)]
    together = engine.run(prompts, engine.params())
    alone = [engine.run([p], engine.params())[0] for p in prompts[3:6]]
    assert [a.token_ids for a in alone] == [a.token_ids for a in together[3:6]]


def test_switched_off_the_request_decodes_sequentially(engine):
    prompt = engine.prompt("a=48*36, b=57*18")
    engine.steps.clear()
    (answer,) = engine.run([prompt], engine.params(forkjoin={"enabled": False}))
    # vLLM names a request by its id and a random suffix; a thread's id would be a second name.
    assert len({i for step in engine.steps for i in step}) == 1
    assert answer.finish_reason == "stop"
