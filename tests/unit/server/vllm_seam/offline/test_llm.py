"""Answers of the offline LLM, without an engine: vLLM's part returns what is given by hand."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
import vllm
from vllm import RequestOutput, SamplingParams
from vllm.outputs import CompletionOutput

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.publish.events import Kept
from forkjoin_scheduler.request.given import OPEN, Given, Part, Stretch
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.settings import COMPILED, Settings
from forkjoin_server.trees import TreeBuilder
from forkjoin_server.vllm_seam.offline.llm import LLM


def _output(number):
    answer = CompletionOutput(
        index=0, text="", token_ids=[number], cumulative_logprob=None, logprobs=None, finish_reason="stop"
    )
    return RequestOutput(str(number), None, [1, 2], None, [answer], finished=True)


@pytest.fixture
def llm(monkeypatch):
    """One whose engine still had the requests 0 and 1 when it was asked for more."""
    llm = object.__new__(LLM)
    llm.request_counter = SimpleNamespace(counter=2)
    llm._processor = SimpleNamespace(builders={})

    def run(self, prompts, params, *_, **__):
        return [_output(number) for number in range(2 + len(prompts))]

    monkeypatch.setattr(vllm.LLM, "generate", run)
    monkeypatch.setattr(vllm.LLM, "chat", run)
    return llm


@pytest.mark.parametrize("called", ["generate", "chat"])
def test_a_call_returns_the_answers_to_its_own_requests(llm, called):
    asked = {"generate": ["a", "b"], "chat": [[{"role": "user", "content": text}] for text in "ab"]}
    params = [SamplingParams(seed=seed) for seed in (5, 6)]
    outputs = getattr(llm, called)(asked[called], params)
    assert [output.request_id for output in outputs] == ["2", "3"]
    assert [output.outputs[0].tree.segments[0].seed for output in outputs] == [5, 6]


def test_an_answer_of_which_nothing_was_recorded_has_its_tokens_as_its_tree(llm):
    """A kept answer has events, and no segments unless it forks."""
    builder = TreeBuilder()
    builder.hear([Kept(num_tokens=16, seconds=60, refusal=None)])
    llm._processor.builders["2", 0] = builder
    (output,) = llm.generate(["a"], SamplingParams())
    (segment,) = output.outputs[0].tree.segments
    assert segment.token_ids == [1, 2, 2]
    assert llm._processor.builders == {}


def test_a_beam_search_does_not_fork(monkeypatch):
    """Each of its steps adds requests; vLLM's own of later calls may fork again."""
    added = []
    monkeypatch.setattr(vllm.LLM, "_add_request", lambda _, prompt, params: added.append(params.extra_args))

    def step(self, prompts):
        for _ in prompts:
            self._add_request({}, SamplingParams())

    monkeypatch.setattr(vllm.LLM, "beam_search", step)
    llm = object.__new__(LLM)
    llm.beam_search(["a"])
    llm._add_request({}, SamplingParams())
    assert added == [{COMPILED: {"enabled": False}}, None]


# ---- going on from a tree ----------------------------------------------------------------------

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
def test_the_limits_beside_a_tree_are_those_of_the_whole_answer(monkeypatch, options, limits, most):
    monkeypatch.setattr(vllm.LLM, "_add_request", lambda *_: "r")
    llm = object.__new__(LLM)
    llm._settings = Settings.of(load("threadweaver"), limits)
    params = SamplingParams(max_tokens=16, extra_args={COMPILED: msgspec.to_builtins(options)})
    if most is None:
        assert llm._add_request({"prompt_token_ids": [1]}, params) == "r"
    else:
        with pytest.raises(BadRequestOptions, match=f"than the 30 that the tree has, got {most}:"):
            llm._add_request({"prompt_token_ids": [1]}, params)
