from __future__ import annotations

import pytest

from forkjoin_server.request.bypass import bypass_reason


def _content(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


def test_prompt_embeddings_and_beam_search_are_left_alone_too():
    assert bypass_reason({"prompt_embeds": "x"}) == "prompt embeddings"
    assert bypass_reason({"use_beam_search": True}) == "beam search"


@pytest.mark.parametrize(
    "body",
    [
        {},
        _content({"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}}),
        {"input": [{"type": "input_image"}], "features": {"image": []}},
        {"messages": [{"role": "assistant", "content": "x", "audio": None}]},
        {"messages": "x", "input": 3},
        {"response_format": {"type": "text"}, "text": {"format": {"type": "text"}}, "tool_choice": "auto"},
        {"response_format": "x", "text": "x", "tool_choice": {"type": "auto"}, "use_beam_search": False},
    ],
)
def test_any_other_request_may_fork(body):
    assert bypass_reason(body) is None


@pytest.mark.parametrize(("budget", "reason"), [(0, "thinking_token_budget"), (-1, None), (None, None)])
def test_a_thinking_budget_is_of_one_row(budget, reason):
    assert bypass_reason({"thinking_token_budget": budget}) == reason
    assert bypass_reason({"thinking": {"type": "enabled", "budget_tokens": budget}}) == reason
