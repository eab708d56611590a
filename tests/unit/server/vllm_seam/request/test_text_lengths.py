from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.renderers.deepseek_v32 import DeepseekV32Renderer
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import TokenizeParams

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_server.vllm_seam.request.text_lengths import bound_texts

#: A context of 10 tokens, each of at most 5 characters.
TOKENIZER = SimpleNamespace(max_chars_per_token=5)
FITS, TOO_LONG = "a" * 50, "a" * 51


@pytest.fixture
def make(monkeypatch):
    """A renderer of vLLM's, of the given kind, whose texts are bounded."""
    monkeypatch.setattr(TokenizeParams, "_text_len_check", TokenizeParams._text_len_check)

    def made(kind):
        renderer = kind.__new__(kind)

        async def apply(*args, **kwargs):
            return "filled in"

        renderer._apply_chat_template_async = apply
        bound_texts(SimpleNamespace(renderer=renderer, model_config=SimpleNamespace(max_model_len=10)))
        return renderer

    return made


@pytest.mark.parametrize(
    "params",
    [
        TokenizeParams(max_total_tokens=None, max_output_tokens=0),
        TokenizeParams(max_total_tokens=100, max_output_tokens=0),
        TokenizeParams(max_total_tokens=10, max_output_tokens=0, truncate_prompt_tokens=3),
    ],
    ids=["tokenize", "longer", "truncated"],
)
def test_a_text_that_no_context_holds_is_never_tokenised(make, params):
    make(HfRenderer)
    assert params._text_len_check(TOKENIZER, FITS) == FITS
    with pytest.raises(BadRequestOptions, match=r"the prompt: expected at most 50 characters.*got 51"):
        params._text_len_check(TOKENIZER, TOO_LONG)


def test_vllms_own_rules_hold_as_before(make):
    make(HfRenderer)
    params = TokenizeParams(
        max_total_tokens=10, max_output_tokens=0, truncate_prompt_tokens=3, truncation_side="left"
    )
    assert params._text_len_check(TOKENIZER, TOO_LONG) == FITS
    assert params._text_len_check(None, TOO_LONG) == TOO_LONG
    with pytest.raises(VLLMValidationError, match="maximum context length"):
        TokenizeParams(max_total_tokens=10, max_output_tokens=0)._text_len_check(TOKENIZER, TOO_LONG)


@pytest.mark.parametrize(
    ("conversation", "more"),
    [
        ([{"role": "user", "content": "a" * 43}], {}),
        ([{"role": "user", "content": [{"type": "text", "text": "a" * 31}]}], {}),
        ([], {"tools": [{"name": "a" * 47}]}),
        ([], {"documents": [{"text": "a" * 38}]}),
    ],
    ids=["message", "part", "tool", "document"],
)
def test_a_template_is_not_filled_in_with_more_than_a_context_holds(make, conversation, more):
    renderer = make(HfRenderer)

    def fill(conversation, **more):
        return asyncio.run(renderer._apply_chat_template_async(None, TOKENIZER, conversation, **more))

    assert fill([{"role": "user", "content": "a" * 20}]) == "filled in"
    with pytest.raises(BadRequestOptions, match="the prompt: expected at most 50 characters"):
        fill(conversation, **more)


def test_templates_of_other_renderers_are_filled_in_as_vllm_does(make):
    apply = make(DeepseekV32Renderer)._apply_chat_template_async
    assert asyncio.run(apply(conversation=[], messages=[{"content": TOO_LONG}])) == "filled in"
