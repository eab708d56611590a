"""Tools that the model calls by itself (``tool_choice: auto``): parsed from a transcript as from a plain answer.

A transcript comes in pieces of other sizes than a plain answer, which comes token by token: at a join all that
the later threads wrote comes at once. vLLM's own parsers read both, those of each family of formats.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_server.vllm_seam.request.tool_calls import (
    _pieces,
    parse_token_by_token,
    skips_special_by_default,
)
from tests.engine import renamed

pytestmark = pytest.mark.engine

OUTLINES = "<Parallel><Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
BEHIND = "</think>"


def _json(name, **arguments):
    return json.dumps({"name": name, "arguments": arguments})


def _hermes(**arguments):
    return f"<tool_call>\n{_json('note', **arguments)}\n</tool_call>"


def _xml(opens, closes, function, end):
    def written(**arguments):
        parameters = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
        return f"{opens}\n<{function}=note>\n{parameters}</{end}>\n{closes}"

    return written


def _glm(**arguments):
    pairs = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in arguments.items())
    return f"<tool_call>note\n{pairs}</tool_call>"


def _deepseek_v3(**arguments):
    call = f"function<｜tool▁sep｜>note\n```json\n{json.dumps(arguments)}\n```"
    return f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"


def _deepseek_v31(**arguments):
    call = f"note<｜tool▁sep｜>{json.dumps(arguments)}"
    return f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"


def _kimi(**arguments):
    call = f"functions.note:0<|tool_call_argument_begin|>{json.dumps(arguments)}"
    return f"<|tool_calls_section_begin|><|tool_call_begin|>{call}<|tool_call_end|><|tool_calls_section_end|>"


def _minimax(**arguments):
    parameters = "".join(f'<parameter name="{k}">{v}</parameter>\n' for k, v in arguments.items())
    return f'<minimax:tool_call>\n<invoke name="note">\n{parameters}</invoke>\n</minimax:tool_call>'


def _pythonic(**arguments):
    return f"[note({', '.join(f'{k}={v}' for k, v in arguments.items())})]"


@dataclass(frozen=True)
class Format:
    """How a family of models writes a call: vLLM's ``parser``, its own tokens, and the text."""

    parser: str
    tokens: tuple[str, ...]
    write: object
    #: Whether vLLM's parser reads one call a transcript, or one that an answer begins with: not in threads.
    is_alone: bool = False


_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
)  # fmt: skip
_KIMI = (
    "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)  # fmt: skip
_TAGS = ("<tool_call>", "</tool_call>")
FORMATS = (
    Format("hermes", _TAGS, _hermes),
    Format("qwen3_coder", _TAGS, _xml("<tool_call>", "</tool_call>", "function", "function")),
    Format("glm45", (*_TAGS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"), _glm),
    Format("deepseek_v3", _DEEPSEEK, _deepseek_v3),
    Format("deepseek_v31", _DEEPSEEK, _deepseek_v31),
    Format("kimi_k2", _KIMI, _kimi),
    Format("jamba", ("<tool_calls>", "</tool_calls>"), lambda **a: f"<tool_calls>[{_json('note', **a)}]</tool_calls>", is_alone=True),
    Format("granite", ("<|tool_call|>",), lambda **a: f"<|tool_call|>[{_json('note', **a)}]", is_alone=True),
    Format("seed_oss", ("<seed:tool_call>", "</seed:tool_call>"), _xml("<seed:tool_call>", "</seed:tool_call>", "function", "function")),
    Format("minimax_m2", ("<minimax:tool_call>", "</minimax:tool_call>"), _minimax),
    Format("mistral", ("[TOOL_CALLS]",), lambda **a: f"[TOOL_CALLS] [{_json('note', **a)}]"),
    Format("llama3_json", ("<|python_tag|>",), lambda **a: json.dumps({"name": "note", "parameters": a}), is_alone=True),
    Format("pythonic", (), _pythonic, is_alone=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The embedded model's folder with the tokens of all formats in its tokenizer."""
    tokens = dict.fromkeys(t for f in FORMATS for t in f.tokens)
    return renamed.with_more_tokens(tmp_path_factory.mktemp("tools"), list(tokens))


@pytest.fixture
def hand(model, monkeypatch):
    from vllm.parser.abstract_parser import DelegatingParser

    from tests.engine.by_hand import ByHand

    monkeypatch.setattr(DelegatingParser, "parse_delta", DelegatingParser.parse_delta)  # undone behind it
    parse_token_by_token()
    return ByHand(load("threadweaver"), model)


def _request(stream):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    number = {"type": "integer"}
    schema = {"type": "object", "properties": {"first": number, "last": number}}
    return ChatCompletionRequest(
        messages=[{"role": "user", "content": "q"}],
        tools=[{"type": "function", "function": {"name": "note", "parameters": schema}}],
        tool_choice="auto",
        stream=stream,
    )


def _parser(form, hand, reasoning):
    from vllm.parser.parser_manager import ParserManager

    made = ParserManager.get_parser(form.parser, reasoning, enable_auto_tools=True)
    return made(hand.tokenizer._inner, _request(stream=False).tools)


def _whole(form, hand, token_ids, reasoning):
    """What vLLM makes of an answer that is not streamed: its reasoning, its content, its calls."""
    text = hand.tokenizer.decode(token_ids)
    parser = _parser(form, hand, reasoning)
    thought, content, calls = parser.parse(text, _request(False), True, token_ids)
    return thought or "", content or "", [(c.name, json.loads(c.arguments)) for c in calls or ()]


def _streamed(form, hand, pieces, reasoning):
    """The same of a stream of ``pieces``, put together as a client does."""
    parser, request = _parser(form, hand, reasoning), _request(True)
    thought, content, calls = "", "", {}
    for number, piece in enumerate(pieces, 1):
        text = hand.tokenizer.decode(piece)
        is_last = number == len(pieces)
        delta = parser.parse_delta(text, list(piece), request, [1], finished=is_last)
        if delta is None:
            continue
        thought, content = thought + (delta.reasoning or ""), content + (delta.content or "")
        for call in delta.tool_calls or ():
            name, arguments = calls.get(call.index, ("", ""))
            function = call.function
            calls[call.index] = (
                name + (function.name or ""),
                arguments + (function.arguments or ""),
            )
    return thought, content, [(name, json.loads(text)) for name, text in calls.values()]


def _run(hand, threads, after):
    """A family whose threads write ``threads`` and that ends with ``after``; its pieces as they leave."""
    hand.add("r", "q")
    hand.say("r", OUTLINES)
    hand.steps_until(lambda: hand.decodes("r#0") and hand.decodes("r#1"))
    for index, text in enumerate(threads):
        hand.say(f"r#{index}", f"{text}</Thread>")
    hand.steps_until(lambda: hand.decodes("r") and "r#1" not in hand.scheduler.requests)
    hand.say("r", f"</Parallel>{after}<|end|>")
    hand.finish()
    pieces = [o.new_token_ids for o in hand.outputs if o.request_id == "r" and o.new_token_ids]
    pieces[-1] = pieces[-1][:-1]  # as vLLM leaves out the end of sequence
    return [p for p in pieces if p]


def _assert_as_plain(form, hand, pieces, reasoning):
    plain = [[token_id] for piece in pieces for token_id in piece]
    assert max(map(len, pieces)) > 10, "what the second thread wrote comes at once"
    whole = _whole(form, hand, [i for p in plain for i in p], reasoning)
    streamed = _streamed(form, hand, pieces, reasoning)
    assert streamed == _streamed(form, hand, plain, reasoning)
    assert streamed[2] == whole[2]
    return whole[2]


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.parser)
def test_a_call_behind_a_join_is_parsed_as_of_a_plain_model(hand, form):
    pieces = _run(
        hand,
        ["one and more text than the other", "two and more text"],
        f"{BEHIND}{form.write(first=1, last=2)}",
    )
    calls = _assert_as_plain(form, hand, pieces, "deepseek_r1")
    assert calls == [("note", {"first": 1, "last": 2})]


@pytest.mark.parametrize("form", [f for f in FORMATS if not f.is_alone], ids=lambda f: f.parser)
def test_calls_in_threads_and_behind_their_join_are_parsed_as_of_a_plain_model(hand, form):
    texts = [f"see {form.write(first=i, last=i)}" for i in (1, 2)]
    pieces = _run(hand, texts, form.write(first=3, last=3))
    calls = _assert_as_plain(form, hand, pieces, None)
    assert ("note", {"first": 1, "last": 1}) in calls


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("abcd", ["a", "b", "c", "d"]),
        ("abc", ["a", "b", "c", ""]),
        ("ab", ["a", "b", ""]),
        ("xabcd", ["xabcd"]),
        ("abcdx", ["a", "b", "c", "dx"]),
        ("", [""]),
    ],
    ids=["whole", "end", "held_back", "held_before", "more", "nothing"],
)
def test_what_no_token_accounts_for_is_one_piece(hand, text, pieces):
    """A stop string holds text back, and what it held comes with later tokens; an end of sequence has no text."""
    parser = _parser(FORMATS[0], hand, None)
    token_ids = hand.tokenizer.encode("abcd" if text != "abc" else "abc") + [257] * (text == "abc")
    found = _pieces(parser, text, token_ids, _request(stream=True))
    assert "".join(piece for piece, _ in found) == text
    assert [i for _, ids in found for i in ids] == token_ids
    assert [piece for piece, _ in found] == pieces


@pytest.mark.parametrize("asked", [True, False, None], ids=["skipped", "shown", "not_said"])
@pytest.mark.parametrize("by_default", [True, False])
def test_a_special_token_is_a_piece_whoever_says_whether_it_has_text(hand, asked, by_default):
    """vLLM 0.33 leaves it to the model's generation config where a request does not say so."""
    parser, request = _parser(FORMATS[0], hand, None), _request(stream=True)
    request.skip_special_tokens = asked
    shown = "" if (by_default if asked is None else asked) else "<|end|>"
    first, last = hand.tokenizer.encode("ab")
    found = _pieces(parser, f"a{shown}b", [first, 257, last], request, by_default)
    assert found == [("a", [first]), (shown, [257]), ("b", [last])]


@pytest.mark.parametrize(("told", "skips"), [({}, True), ({"skip_special_tokens": False}, False)], ids=str)
def test_what_a_request_does_not_say_the_generation_config_says(told, skips):
    assert skips_special_by_default(SimpleNamespace(get_diff_sampling_param=lambda: told)) is skips
