"""Structured output behind reasoning that forks, over HTTP: what each route and each word for it gives."""

from __future__ import annotations

import json
import random
import re

import httpx
import openai
import pytest

from tests.server.conftest import start_server
from tests.server.reading import SHOWN, without_ids
from training.prompts import make_worksheet

pytestmark = pytest.mark.server

SHEETS = [
    make_worksheet(random.Random(f"json {i}"), num_long=2, num_short=0, held_out=True) for i in range(4)
]
DIGIT = {"enum": list(range(10))}
SCHEMA = {
    "type": "object",
    "properties": {"first": DIGIT, "last": DIGIT},
    "required": ["first", "last"],
    "additionalProperties": False,
}
JSON = {"type": "json_schema", "json_schema": {"name": "digits", "schema": SCHEMA}}
#: Strict: else vLLM lets any JSON through, which a model of this size does not end.
TOOL = {"type": "function", "function": {"name": "note", "strict": True, "parameters": SCHEMA}}
THREADS = {"forkjoin": SHOWN}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    flags = ["--dtype", "float32", "--reasoning-parser", "deepseek_r1", "--max-num-seqs", "8"]
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    # a model of this size writes spaces for ever where it may
    flags += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    with start_server(tmp_path_factory.mktemp("structured") / "log", *flags) as (address, _):
        yield address


@pytest.fixture(scope="module")
def sdk(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300) as client:
        yield client


def _asking(sheet, **more):
    messages = [{"role": "user", "content": sheet.prompt}]
    return {"model": "abacus", "temperature": 0, "max_tokens": 1500, "messages": messages} | more


def _ask(sdk, sheet, forkjoin=SHOWN, **more):
    return sdk.chat.completions.create(**_asking(sheet, **more), extra_body={"forkjoin": forkjoin})


def _check(text: str) -> None:
    assert re.fullmatch(r'\{"first":\d,"last":\d\}', text), text
    json.loads(text)


@pytest.mark.parametrize("sheet", SHEETS[:2], ids=lambda s: s.prompt.replace("\n", ","))
def test_the_reasoning_is_that_of_a_plain_request_and_the_answer_obeys(sdk, sheet):
    plain, answer = _ask(sdk, sheet), _ask(sdk, sheet, response_format=JSON)
    _check(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.reasoning == plain.choices[0].message.reasoning
    assert len(answer.choices[0].message.threads) == 2
    assert without_ids(answer.choices[0].message.threads) == without_ids(plain.choices[0].message.threads)


def test_streamed_it_is_the_same(sdk):
    sheet = SHEETS[0]
    whole = _ask(sdk, sheet, response_format=JSON)
    stream = _ask(sdk, sheet, response_format=JSON, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert "".join(d.content or "" for d in deltas) == whole.choices[0].message.content
    assert "".join(getattr(d, "reasoning", None) or "" for d in deltas) == whole.choices[0].message.reasoning
    assert chunks[-1].usage.forkjoin == whole.usage.forkjoin
    assert chunks[-1].usage.forkjoin["num_threads"] == 2


def test_each_of_several_choices_obeys(sdk):
    answer = _ask(sdk, SHEETS[1], {}, response_format=JSON, n=2, temperature=0.2, seed=1)
    for choice in answer.choices:
        _check(choice.message.content)
    assert answer.usage.forkjoin["num_threads"] == 4, "two of each"


@pytest.mark.parametrize(
    "constraint",
    [{"regex": "total [0-9]{3}"}, {"choice": ["yes", "no"]}, {"grammar": 'root ::= "a" [0-9] "b"'}],
    ids=lambda c: next(iter(c)),
)
def test_every_kind_of_constraint_holds_for_the_answer(sdk, constraint):
    body = {"forkjoin": SHOWN, "structured_outputs": constraint}
    answer = sdk.chat.completions.create(**_asking(SHEETS[2]), extra_body=body)
    pattern = {"regex": "total [0-9]{3}", "choice": "yes|no", "grammar": "a[0-9]b"}[next(iter(constraint))]
    assert re.fullmatch(pattern, answer.choices[0].message.content)
    assert len(answer.choices[0].message.threads) == 2


@pytest.mark.parametrize(
    "choice", [{"type": "function", "function": {"name": "note"}}, "required"], ids=["named", "required"]
)
def test_a_forced_tool_is_called_behind_the_reasoning(sdk, choice):
    # the grammar of a tool lets the model write spaces for ever: it is made to tire of them
    more = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "frequency_penalty": 0.3}
    whole = _ask(sdk, SHEETS[3], **more)
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "note"
    assert set(json.loads(call.function.arguments)) == {"first", "last"}
    assert whole.usage.forkjoin["num_threads"] == 2
    stream = _ask(sdk, SHEETS[3], **more, stream=True)
    calls = [c for chunk in stream for x in chunk.choices for c in x.delta.tool_calls or []]
    # of a whole call vLLM writes the arguments anew, without the model's spaces
    streamed = "".join(c.function.arguments or "" for c in calls)
    assert json.loads(streamed) == json.loads(call.function.arguments)
    assert [c.function.name for c in calls if c.function.name] == ["note"]


def test_a_stop_string_ends_a_structured_answer(sdk):
    answer = _ask(sdk, SHEETS[0], response_format=JSON, stop=[',"last"'])
    assert re.fullmatch(r'\{"first":\d', answer.choices[0].message.content)
    assert answer.usage.forkjoin["num_threads"] == 2


def test_a_response_is_reasoning_threads_and_an_answer_that_obeys(sdk):
    text = {"format": {"type": "json_schema", "name": "digits", "schema": SCHEMA}}
    response = sdk.responses.create(
        model="abacus",
        temperature=0,
        max_output_tokens=1500,
        input=SHEETS[0].prompt,
        text=text,
        extra_body=THREADS,
    )
    _check(response.output_text)
    assert response.usage.forkjoin["num_threads"] == 2


def test_a_completion_has_the_answer_behind_its_reasoning(address):
    body = {"model": "abacus", "temperature": 0, "max_tokens": 1500, "response_format": JSON}
    prompt = f"<|user|>{SHEETS[0].prompt}<|assistant|>"
    answer = httpx.post(f"{address}/v1/completions", json=body | {"prompt": prompt}, timeout=300).json()
    _check(answer["choices"][0]["text"].partition("</think>")[2])
    assert answer["usage"]["forkjoin"]["num_threads"] == 2


def test_without_its_reasoning_an_answer_obeys_from_the_first_token(sdk):
    """vLLM's ``include_reasoning: false`` constrains all of it: then nothing may fork."""
    body = {"forkjoin": {}, "include_reasoning": False}
    answer = sdk.chat.completions.create(**_asking(SHEETS[0], response_format=JSON), extra_body=body)
    assert getattr(answer.usage, "forkjoin", None) is None
    body["forkjoin"] = {"branches": [{"text": "a="}], "closing": "\nSo"}
    with pytest.raises(openai.BadRequestError, match=r"forkjoin\.branches: .*ends the reasoning"):
        sdk.chat.completions.create(**_asking(SHEETS[0], response_format=JSON), extra_body=body)


def test_branches_of_the_requests_own_stand_in_the_reasoning(sdk):
    asked = SHOWN | {"branches": [{"text": "a="}, {"text": "b="}], "closing": "\n</think>"}
    answer = _ask(sdk, SHEETS[0], asked | {"max_tokens_per_thread": 20}, response_format=JSON)
    _check(answer.choices[0].message.content)
    assert [t["title"] for t in answer.choices[0].message.threads] == ["1", "2"]
    assert answer.choices[0].message.reasoning.startswith("a=")


def test_each_answer_of_a_vote_obeys(sdk):
    vote = SHOWN | {"best_of": 3, "vote": r'"last":(?P<result>\d)'}
    answer = _ask(sdk, SHEETS[1], vote, response_format=JSON, temperature=0.7, seed=1)
    _check(answer.choices[0].message.content)
    for thread in answer.choices[0].message.threads:
        _check(thread["content"].partition("</think>")[2])
    assert answer.usage.forkjoin["vote"]["result"] == answer.choices[0].message.content[-2]


# ---- a schema for each branch -------------------------------------------------------------------


def _schema(*values):
    schema = {"type": "object", "properties": {"a": {"enum": list(values)}}, "required": ["a"]}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


BRANCHES = [
    {"title": "letter", "text": "x=", "response_format": _schema("p", "q")},
    {"title": "digit", "text": "y=", "response_format": _schema(7)},
]


def test_each_branch_obeys_its_own_schema_and_the_answer_another(sdk):
    asked = SHOWN | {"branches": BRANCHES, "closing": "\n</think>"}
    whole = _ask(sdk, SHEETS[0], asked, response_format=JSON)
    letter, digit = (t["content"] for t in whole.choices[0].message.threads)
    assert letter in ('{"a":"p"}', '{"a":"q"}')
    assert digit == '{"a":7}'
    _check(whole.choices[0].message.content)
    stream = _ask(sdk, SHEETS[0], asked, response_format=JSON, stream=True)
    deltas = [c.choices[0].delta for c in stream if c.choices]
    assert "".join(d.content or "" for d in deltas) == whole.choices[0].message.content
    entries = [e for d in deltas for e in getattr(d, "threads", None) or []]
    assert "".join(e.get("content", "") for e in entries if e["index"] == 0) == letter


def test_a_branches_schema_that_vllm_does_not_take_is_a_400_that_names_it(sdk):
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    asked = {"branches": [BRANCHES[0], {"text": "z=", "response_format": wrong}]}
    with pytest.raises(openai.BadRequestError, match=r"forkjoin\.branches\[1\]\.response_format"):
        _ask(sdk, SHEETS[0], asked)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("choice", [{"type": "function", "function": {"name": "f"}}, "required"])
def test_a_tool_that_the_grammars_library_does_not_take_is_a_400_that_says_why(sdk, choice, stream):
    parameters = {"type": "object", "properties": {"a": {"type": "string", "pattern": r"\p{L}{1000}"}}}
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}
    with pytest.raises(openai.BadRequestError, match="Unicode character class"):
        _ask(sdk, SHEETS[0], tools=[tool], tool_choice=choice, stream=stream)
