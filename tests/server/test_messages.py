"""``/v1/messages`` through the Anthropic SDK, which vLLM brings along."""

from __future__ import annotations

import anthropic
import pytest

pytestmark = pytest.mark.server

#: The Anthropic SDK has no argument for it any more.
GREEDY = {"temperature": 0}

ASK = {
    "model": "abacus",
    "max_tokens": 2000,
    "messages": [{"role": "user", "content": "a=482*731, b=7*8, c=907*36"}],
}


@pytest.fixture(scope="module")
def messages(server):
    with anthropic.Anthropic(base_url=server, api_key="none", timeout=300) as claude:
        yield claude.messages


@pytest.fixture(scope="module")
def chat(client):
    return client.chat.completions.create(**ASK, **GREEDY)


def test_the_transcript_and_usage_are_chats(messages, chat):
    message = messages.create(**ASK, extra_body=GREEDY)
    assert message.content[0].text == chat.choices[0].message.content
    assert message.usage.input_tokens == chat.usage.prompt_tokens
    assert message.usage.output_tokens == chat.usage.completion_tokens
    assert message.usage.forkjoin == chat.usage.forkjoin


def test_streamed_too(messages, chat):
    with messages.stream(**ASK, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        usage = stream.get_final_message().usage
    assert text == chat.choices[0].message.content
    assert usage.output_tokens == chat.usage.completion_tokens


def test_the_options_reach_the_engine(messages):
    usage = messages.create(**ASK, extra_body=GREEDY | {"forkjoin": {"enabled": False}}).usage
    assert "forkjoin" not in usage.to_dict()


@pytest.mark.parametrize(
    ("options", "named"), [({"bogus": 1}, "bogus"), ({"include_threads": True}, "responses")]
)
def test_what_is_refused_reads_as_an_error_of_this_api(messages, options, named):
    with pytest.raises(anthropic.BadRequestError, match=named) as caught:
        messages.create(**ASK, extra_body={"forkjoin": options})
    assert caught.value.body["error"]["type"] == "invalid_request_error"
