from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer
from forkjoin_server.request.control_tokens import ControlTokens, Marked
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.request.renderers import Policy, install

MARK = "\U000101d0"
JAVA = "Why does List<Thread> t = new ArrayList<>(); fail? See </Thread>, <Outlines> and <Parallel>."


@cache
def _inner():
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


@cache
def _tokens():
    tokenizer = _inner()
    tags = load("threadweaver").control_tokens
    return ControlTokens.of(tags, tokenizer.get_added_vocab(), EngineTokenizer(tokenizer))


def _encode(text):
    return _inner().encode(text, add_special_tokens=False)


def _ids(before, content, after=""):
    """The tokens of a prompt in which a client wrote ``content``."""
    tokens = _tokens()
    text, starts = tokens.plain(before + tokens.marked(content) + after)
    assert text == before + content + after
    return [i for ids in tokens.neutralised(_encode(text), text, starts) for i in ids]


def _spelled(ids):
    """The control tokens among ``ids``."""
    return [_inner().convert_ids_to_tokens(i) for i in ids if i in _tokens().ids.values()]


def test_every_control_token_of_the_dialect_is_known():
    assert set(_tokens().ids) == set(load("threadweaver").control_tokens)


@pytest.mark.parametrize(
    "content", [JAVA, "<Thread>", "<Thread><Thread>", "<<Thread>>", "<Thre<Thread>ad>", "", "a"]
)
def test_what_a_client_spells_is_text_to_the_letter(content):
    ids = _ids("<|user|>", content, "<|assistant|>")
    assert _spelled(ids) == []
    assert _inner().decode(ids) == f"<|user|>{content}<|assistant|>"
    assert ids[0] == _encode("<|user|>")[0]


def test_what_the_template_spells_stays_a_control_token():
    ids = _ids("<Parallel><|user|>", "<Parallel> and <Thread>", "<Thread>")
    assert _spelled(ids) == ["<Parallel>", "<Thread>"]
    assert ids[-1] == _tokens().ids["<Thread>"]


@pytest.mark.parametrize(
    "content", [MARK, f"{MARK}\U00013000", f"{MARK}<Thread>{MARK}{MARK}", "<Thread>\U00013001"]
)
def test_a_mark_that_a_client_writes_itself_is_only_a_character(content):
    ids = _ids("", content)
    assert _spelled(ids) == []
    assert _inner().decode(ids) == content


@pytest.mark.parametrize(
    "parts",
    [
        ["<Par", "allel>"],
        ["<", "Thread>"],
        ["<Thread", ">"],
        ["a<T", "hre", "ad>b"],
        ["<Thread><", "", "/Thread>"],
        ["<", "<", "a<Outlines", ">"],
    ],
)
def test_tags_that_a_template_puts_together_of_parts_are_text(parts):
    tokens = _tokens()
    text, starts = tokens.plain("<Parallel>" + "".join(tokens.marked(parts)) + "<Outlines>")
    assert text == f"<Parallel>{''.join(parts)}<Outlines>"
    ids = [i for ids in tokens.neutralised(_encode(text), text, starts) for i in ids]
    assert _spelled(ids) == ["<Parallel>", "<Outlines>"]
    assert _inner().decode(ids) == text


def test_the_end_of_a_text_and_a_tag_of_the_template_behind_it_are_told_apart():
    assert _spelled(_ids("", "a <Para", "<Thread>")) == ["<Thread>"]


@pytest.mark.parametrize("is_ascii", [False, True])
def test_a_template_may_write_json_of_what_it_is_given(is_ascii):
    tokens = _tokens()
    text, starts = tokens.plain(json.dumps(tokens.marked({"a": "<Thread>"}), ensure_ascii=is_ascii))
    assert text == '{"a": "<Thread>"}'
    assert starts == {7}


@pytest.mark.parametrize("cut", [slice(0, 12), slice(-12, None), slice(0, 0)], ids=["right", "left", "all"])
def test_tokens_that_were_cut_to_a_length_are_told_apart_all_the_same(cut):
    tokens = _tokens()
    text, starts = tokens.plain(
        "<Parallel>" + tokens.marked("a <Thread> b") + "</Parallel>" + tokens.marked("<Thread>")
    )
    whole = _encode(text)[cut]
    ids = [i for ids in tokens.neutralised(whole, text, starts) for i in ids]
    assert "<Thread>" not in _spelled(ids)
    assert _inner().decode(ids) == _inner().decode(whole)


def test_tokens_that_are_not_the_texts_are_all_text():
    tokens = _tokens()
    text, starts = tokens.plain("<Parallel>" + tokens.marked("<Thread>"))
    other = _encode("<Thread><Parallel><Thread><Parallel>")
    assert _spelled([i for ids in tokens.neutralised(other, text, starts) for i in ids]) == []


def test_a_marked_text_that_is_cut_or_lowered_stays_one():
    marked = Marked("ABC")
    assert [type(t) for t in (marked[1:], marked[-2:], marked.lower())] == [Marked] * 3
    assert (marked[1:], marked.lower()) == ("BC", "abc")


# ---- in vLLM's renderer --------------------------------------------------------------------


class HfRenderer(SimpleNamespace):
    """vLLM's of this name, as far as it is called."""

    def get_tokenizer(self):
        return _inner()


def _template(conversation, tools, documents=()):
    """A chat template: all that it is given, between control tokens of its own."""
    texts = [f"<Outlines>{tools or ''}{''.join(documents)}"]
    for message in conversation:
        content = message["content"]
        parts = content if isinstance(content, str) else "".join(part["text"] for part in content)
        calls = "".join(call["function"]["arguments"] for call in message.get("tool_calls", ()))
        texts.append(f"<|user|>{parts}{calls}")
    return "".join(texts)


@pytest.fixture
def render():
    """What a chat's prompt becomes: its tokens, by vLLM's renderer as far as it is called."""
    with ThreadPoolExecutor(1) as executor:

        async def apply(model_config, tokenizer, conversation, *, tools=None, tokenize=True, **kwargs):
            text = _template(conversation, tools, **kwargs)
            return _encode(text) if tokenize else text

        async def tokenize(prompt, params):
            ids = _encode(prompt["prompt"])
            more = {"prompt_token_offsets": [(n, n + 1) for n in range(len(ids))]} if params else {}
            return {**prompt, "prompt_token_ids": ids, **more}

        def make(
            conversation, *, refuses=False, instruction=None, offsets=False, is_tokenised=False, **kwargs
        ):
            renderer = HfRenderer(
                _executor=executor, _apply_chat_template_async=apply, _tokenize_prompt_async=tokenize
            )
            install(renderer, Policy(_tokens(), refuses, instruction))

            async def chat():
                made = await renderer._apply_chat_template_async(
                    None, _inner(), conversation, tokenize=is_tokenised, **kwargs
                )
                return (
                    made if is_tokenised else await renderer._tokenize_prompt_async({"prompt": made}, offsets)
                )

            return asyncio.run(chat())

        yield make


def _says(role, content, **more):
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("conversation", "kwargs"),
    [
        ([_says("user", JAVA)], {}),
        ([_says("system", JAVA), _says("user", "a")], {}),
        ([_says("tool", JAVA)], {}),
        ([_says("assistant", JAVA), _says("user", "a")], {}),
        ([_says("user", [{"type": "text", "text": JAVA}, {"type": "text", "text": "<Thread>"}])], {}),
        ([_says("user", [{"type": "text", "text": "<Thr"}, {"type": "text", "text": "ead>"}])], {}),
        ([_says("assistant", "", tool_calls=[{"function": {"arguments": '{"a": "<Thread>"}'}}])], {}),
        ([_says("user", "a")], {"tools": [{"function": {"description": "<Thread>", "<Thread>": 1}}]}),
        ([_says("user", "a")], {"documents": ["<Thread>"]}),
    ],
    ids=["user", "system", "tool", "assistant", "parts", "split", "call", "tools", "documents"],
)
@pytest.mark.parametrize("is_tokenised", [False, True], ids=["text", "tokens"])
def test_nothing_of_a_chat_becomes_a_control_token_but_what_the_template_writes(
    render, conversation, kwargs, is_tokenised
):
    made = render(conversation, is_tokenised=is_tokenised, **kwargs)
    ids = made if is_tokenised else made["prompt_token_ids"]
    text = _template(conversation, kwargs.get("tools"), kwargs.get("documents", ()))
    assert _spelled(ids) == ["<Outlines>"]
    assert _inner().decode(ids) == text
    assert is_tokenised or made["prompt"] == text


def test_what_nests_deeper_than_any_tool_is_refused(render):
    deep = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(BadRequestOptions, match="at most 100 lists and objects in each other"):
        render([_says("user", "a")], tools=deep)


def test_a_chat_that_spells_none_is_vllms_own(render):
    conversation = [_says("user", "a")]
    made = render(conversation)
    assert type(made["prompt"]) is str
    assert made["prompt_token_ids"] == _encode(_template(conversation, None))


def test_a_raw_prompt_is_not_touched(render):
    renderer = HfRenderer(_apply_chat_template_async=None)

    async def tokenize(prompt, params):
        return {**prompt, "prompt_token_ids": _encode(prompt["prompt"])}

    renderer._tokenize_prompt_async = tokenize
    install(renderer, Policy(_tokens(), refuses=True, instruction=None))
    made = asyncio.run(renderer._tokenize_prompt_async({"prompt": f"<Thread>{MARK}\U00013000"}, None))
    assert _spelled(made["prompt_token_ids"]) == ["<Thread>"]
    assert made["prompt"] == f"<Thread>{MARK}\U00013000"


def test_each_token_of_a_tags_text_has_the_tags_place(render):
    made = render([_says("user", "<Thread>a")], offsets=True)
    assert len(made["prompt_token_offsets"]) == len(made["prompt_token_ids"])
    assert made["prompt_token_offsets"][2:10] == [(2, 3)] * 8


@pytest.mark.parametrize(
    ("conversation", "kwargs", "named"),
    [
        ([_says("user", "a"), _says("user", JAVA)], {}, r"messages\[1\]: .*, got <"),
        ([_says("system", [{"type": "text", "text": "<Parallel>"}])], {}, r"messages\[0\]: .*<Parallel>"),
        ([_says("user", "a")], {"tools": [{"name": "<Thread>"}]}, "tools: .*<Thread>"),
    ],
    ids=["user", "system", "tools"],
)
def test_a_control_token_is_refused_by_the_message_that_spells_it(render, conversation, kwargs, named):
    with pytest.raises(BadRequestOptions, match=named):
        render(conversation, refuses=True, **kwargs)


def test_an_answer_of_before_is_text_where_others_are_refused(render):
    made = render([_says("assistant", JAVA), _says("user", "a")], refuses=True)
    assert _spelled(made["prompt_token_ids"]) == ["<Outlines>"]


@pytest.mark.parametrize("parts", [False, True], ids=["text", "parts"])
@pytest.mark.parametrize("refuses", [False, True], ids=["neutralise", "refuse"])
def test_the_servers_own_instruction_keeps_its_control_tokens(render, parts, refuses):
    instruction = "\nUse <Parallel>."
    content = (
        [{"type": "text", "text": "a"}, {"type": "text", "text": instruction}] if parts else f"a{instruction}"
    )
    made = render([_says("user", content)], instruction=instruction, refuses=refuses)
    assert _spelled(made["prompt_token_ids"]) == ["<Outlines>", "<Parallel>"]
