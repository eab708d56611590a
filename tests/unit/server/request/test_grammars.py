"""What grammars are refused before a library compiles them."""

from __future__ import annotations

import json

import pytest

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_server.request.grammars import MAX_DEPTH, check_grammars, unrolled_squares


def _schema(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def _nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _text(schema):
    """``schema`` as JSON; Python writes none that nests as deeply as one of the cases."""
    depth, inner = 0, schema
    while isinstance(inner, dict) and inner.get("type") == "array":
        depth, inner = depth + 1, inner["items"]
    return (
        '{"type": "array", "items": ' * depth + json.dumps(inner) + "}" * depth
        if depth
        else json.dumps(schema)
    )


INT64 = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
KILLS_LLGUIDANCE = {"type": "integer", "minimum": -(2**63), "maximum": -(2**63) + 5}
BOMB = {"type": "string", "pattern": "((a{0,100}){0,100}){0,100}"}


@pytest.mark.parametrize(
    "body",
    [
        _schema(INT64),
        _schema({"type": "integer", "maximum": 2**64 - 1}),
        _schema({"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(\.\d{1,9})?$"}),
        _schema({"type": "string", "pattern": r"[a-z{]{1,64}\{9999999}(x{0,30}){0,30}"}),
        _schema({"type": "string", "maxLength": 65_536}),
        _schema({"enum": [f"value {i}" for i in range(10_000)]}),
        _schema(_nested(20)),
        {"structured_outputs": {"regex": "[0-9]{1,1000}"}},
        {"structured_outputs": {"grammar": 'root ::= "a"{1,20}'}},
        {"response_format": None, "tools": None, "text": "plain", "forkjoin": None},
        {"messages": [{"role": "user", "content": "a{0,99999}"}], "metadata": {"pattern": "a{99999}"}},
    ],
)
def test_what_people_send_passes(body):
    check_grammars(body)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (KILLS_LLGUIDANCE, "numbers of 64 bits"),
        ({"type": "integer", "exclusiveMinimum": -1e30, "maximum": -(2**63) + 1}, "numbers of 64 bits"),
        ({"type": "integer", "minimum": -(2**70)}, "numbers of 64 bits"),
        ({"const": 2**70}, "numbers of 64 bits"),
        ({"const": 10**400}, "numbers of 64 bits"),  # more than a float holds
        ({"x" * 5_000: 1e30}, "numbers of 64 bits"),
        ({"enum": [1, -(2**63)]}, "numbers of 64 bits"),
        (BOMB, "repetitions multiply"),
        ({"type": "string", "pattern": "a{0,10000}"}, "repetitions multiply"),
        ({"type": "string", "pattern": "(?:(a|b){2001})?"}, "repetitions multiply"),
        ({"type": "object", "patternProperties": {"^(x{99}){99}$": {}}}, "repetitions multiply"),
        ({"anyOf": [{"pattern": f"a{{0,1000}}b{i}"} for i in range(9)]}, "repetitions multiply"),
        ({"type": "string", "pattern": "a" * 70_000}, "characters"),
        (_nested(MAX_DEPTH), "deep in each other"),
        (_nested(100_000), "deep in each other"),
        ({"enum": list(range(30_000))}, "at most 20000 values"),
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        _schema,
        lambda schema: {"structured_outputs": {"json": schema}},
        lambda schema: {"structured_outputs": {"json": _text(schema)}},
        lambda schema: {"structured_outputs": {"structural_tag": f'{{"structures": [{_text(schema)}]}}'}},
        lambda schema: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        lambda schema: {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
        lambda schema: {"sampling_params": {"structured_outputs": {"json": schema}}},
        lambda schema: {"forkjoin": {"branches": [{"text": "a"}, {"text": "b", **_schema(schema)}]}},
    ],
    ids=[
        *("response_format", "structured_outputs", "json_text", "structural_tag", "output_config", "text"),
        *("sampling_params", "branch"),
    ],
)
def test_a_grammar_that_costs_too_much_is_refused_by_its_field(place, schema, said):
    body = place(schema)
    with pytest.raises(BadRequestOptions, match=said) as refused:
        check_grammars(body)
    assert refused.value.field == next(iter(body))
    assert len(str(refused.value)) < 300


def test_text_that_is_no_json_is_vllms_to_refuse():
    check_grammars({"structured_outputs": {"json": "{", "structural_tag": ""}})
    with pytest.raises(BadRequestOptions, match="more digits in json"):
        check_grammars({"structured_outputs": {"json": "9" * 5_000}})


def test_tools_may_be_many_and_none_may_be_a_bomb():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    check_grammars({"tools": [tool] * 5_000})
    with pytest.raises(BadRequestOptions, match="tools: expected patterns"):
        check_grammars({"tools": [tool, {"function": {"parameters": BOMB}}]})


@pytest.mark.parametrize(
    ("pattern", "squares"),
    [
        ("abc*", 0),
        ("a{3}", 9),
        ("a{3,}", 16),
        ("a{0,4}", 16),
        ("(a{3}b{0,4}){10}", 2600),
        ("((a{2}){3}){4}", 24**2 + 12**2 + 4**2),
        (r"\{3}", 0),
        (r"[{3}]", 0),
        (r"[\]{3}]{2}", 4),
        ("a{3}{4}", 12**2 + 4**2),
        ("(a{3})+{4}", 12**2 + 4**2),
        ("{3}", 9),
        ("((((", 0),
        ("))))a{2}", 4),
        ("\\", 0),
        ("[", 0),
        ("a{" + "9" * 5000 + "}", 10**18),
        ("(" + "a{1}" * 8_000 + ")" + "{2}" * 10_000, 10**18),  # in no time
    ],
)
def test_repetitions_are_multiplied_as_they_are_nested(pattern, squares):
    assert unrolled_squares(pattern) == squares
