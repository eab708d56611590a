"""What fork/join leaves alone, and what it refuses at start."""

from __future__ import annotations

import pytest
from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

pytestmark = pytest.mark.engine

QUESTION = "a=482*731, b=907*36"


def _ids(engine):
    return {i for step in engine.steps for i in step}


def test_structured_output_is_vllms_alone(engine):
    trigger = "<Outlines><Outline>1: x</Outline></Outlines>"
    choice = StructuredOutputsParams(choice=[trigger, "no"])
    bias = {engine.tokenizer.token_id("<Outlines>"): 50.0}
    engine.steps.clear()
    params = engine.params(structured_outputs=choice, max_tokens=80, logit_bias=bias)
    (answer,) = engine.run([engine.prompt(QUESTION)], params)
    assert answer.text == trigger
    assert not any("#" in i for i in _ids(engine))


def test_beam_search_decodes_each_token_by_itself_and_never_forks(engine):
    engine.steps.clear()
    (result,) = engine.llm.beam_search(
        [{"prompt_token_ids": engine.prompt(QUESTION)}], BeamSearchParams(beam_width=2, max_tokens=70)
    )
    assert "</Outlines>" in result.sequences[0].text
    assert not any("#" in i for i in _ids(engine))


def test_without_prefix_caching_the_engine_does_not_start_and_says_why():
    from forkjoin_scheduler.errors import UnsupportedEngine
    from tests.engine.harness import Engine

    with pytest.raises(UnsupportedEngine, match="prefix caching switched off"):
        Engine(enable_prefix_caching=False)
