"""What a request to ``forkjoin.LLM`` may generate, beside the tree that it goes on from."""

from __future__ import annotations

import msgspec
import pytest
import vllm
from vllm import SamplingParams

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.given import OPEN, Given, Part, Stretch
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.settings import COMPILED, Settings
from forkjoin_server.vllm_seam.offline.llm import LLM

GIVEN = Given([1], {"/0.0": [Stretch([Part([7] * 15)], OPEN)], "/0.1": [Stretch([Part([8] * 15)], OPEN)]})
VOTE = CompiledOptions(best_of=2, vote="x", given=GIVEN)


@pytest.mark.parametrize(
    ("options", "limits", "most"),
    [
        (VOTE, {}, None),
        (VOTE, {"max_total_tokens": 30}, 30),
        (msgspec.structs.replace(VOTE, max_total_tokens=20), {}, 20),
        (CompiledOptions(given=GIVEN), {}, 16),
    ],
    ids=["each thread of a vote", "the engine's", "its own", "one answer"],
)
def test_its_limits_are_those_of_the_whole_answer(monkeypatch, options, limits, most):
    monkeypatch.setattr(vllm.LLM, "_add_request", lambda *_: "r")
    llm = object.__new__(LLM)
    llm._settings = Settings.of(load("threadweaver"), limits)
    params = SamplingParams(max_tokens=16, extra_args={COMPILED: msgspec.to_builtins(options)})
    if most is None:
        assert llm._add_request({"prompt_token_ids": [1]}, params) == "r"
    else:
        with pytest.raises(BadRequestOptions, match=f"than the 30 that the tree has, got {most}:"):
            llm._add_request({"prompt_token_ids": [1]}, params)
