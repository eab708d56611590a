"""Structured answers behind reasoning that forks, by a real model: the same reasoning, an answer that obeys.

``test_answers.py`` has the interleavings, on the scheduler without a model.
"""

from __future__ import annotations

import re

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.engine.conftest import worksheets

pytestmark = pytest.mark.engine

BEHIND = "</think>"
ANSWER = r"\nx[0-9]{6}y"
GOAL = "<Parallel><Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>"


@pytest.fixture(scope="module")
def engine():
    from tests.engine.harness import Engine

    return Engine(reasoning_parser="deepseek_r1")


@pytest.fixture(scope="module")
def stitched(tmp_path_factory):
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.harness import Engine
    from tests.engine.renamed import MULTIVERSE, with_tokens

    dialect = load("multiverse")
    join = dialect.join.model_copy(update={"text": f"<Conclusion>\n{BEHIND}"})
    model = with_tokens(tmp_path_factory.mktemp("multiverse"), MULTIVERSE)
    return Engine(dialect.model_copy(update={"join": join}), model, reasoning_parser="deepseek_r1")


def _structured():
    return StructuredOutputsParams(regex=ANSWER)


def _num_threads(engine):
    return len({i for step in engine.steps for i in step if re.fullmatch(r".*#\d+", i)})


def test_reasoning_is_a_plain_requests_and_every_answer_obeys(engine):
    prompts = [engine.prompt(sheet.prompt) for sheet in worksheets(12)]
    plain = engine.run(prompts, engine.params())
    engine.steps.clear()
    answers = engine.run(prompts, [engine.params(structured_outputs=_structured()) for _ in prompts])
    assert _num_threads(engine) > 20
    for one, other in zip(plain, answers, strict=True):
        reasoning, _, answer = other.text.partition(BEHIND)
        assert reasoning == one.text.partition(BEHIND)[0]
        assert re.fullmatch(ANSWER, answer)
        assert other.finish_reason == "stop"


def test_each_thread_of_a_vote_obeys(engine):
    prompt = engine.prompt(worksheets(1)[0].prompt)
    vote = {"best_of": 3, "vote": r"x(?P<result>[0-9])", "include_threads": True}
    params = engine.params(forkjoin=vote, structured_outputs=_structured(), temperature=1.0, seed=3)
    (answer,) = engine.run([prompt], params)
    assert re.fullmatch(ANSWER, answer.text.partition(BEHIND)[2])


@pytest.mark.parametrize("evicted", [False, True], ids=["left", "evicted"])
def test_a_stitched_answer_obeys_also_where_its_blocks_are_taken_in_the_middle(stitched, evicted):
    threads = {"1": "one</Path>", "2": "two and more</Path>"}
    params = stitched.scripted(GOAL, threads, None, ending=BEHIND, structured_outputs=_structured())
    request_id = stitched.add(stitched.prompt("a=482*731, b=9047*36"), params)
    num_behind = 5

    def is_in_its_answer():
        live = next(iter(stitched.scheduler._core.live.values()), None)
        return live is not None and live.family.num_forks and live.request.num_output_tokens == num_behind

    if evicted:
        stitched.step_until(is_in_its_answer)
        stitched.scheduler._eviction.evict(next(iter(stitched.scheduler._core.live.values())))
        stitched.scheduler._eviction.restore_next()
    answer = stitched.drain()[request_id]
    assert re.fullmatch(ANSWER, answer.text.partition(BEHIND)[2])
    assert answer.text.count("<Path>") == 2
    assert stitched.snapshot() == stitched.baseline
