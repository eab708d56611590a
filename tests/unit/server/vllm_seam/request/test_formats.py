"""What is wrong with a branch's response_format, in a sentence."""

from __future__ import annotations

import re

import pytest

from forkjoin_server.vllm_seam.request.formats import constraint_of

KINDS = "text, json_object, json_schema, structural_tag"


@pytest.mark.parametrize(
    ("response_format", "said"),
    [
        ({}, f"expected a type, one of {KINDS}, got none"),
        ({"type": "jsno"}, f"expected a type, one of {KINDS}, got 'jsno'"),
        ({"type": ["text"]}, f"expected a type, one of {KINDS}, got ['text']"),
        ({"type": "json_schema", "json_schema": {}}, "json_schema.name: expected this field, got none"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": 1}},
            "json_schema.schema: Input should be a valid dictionary, got 1",
        ),
        ({"type": "json_schema"}, "expected json_schema.schema beside the type json_schema, got none"),
        ({"type": "structural_tag"}, "format: expected this field, got none"),
        (
            {"type": "structural_tag", "structures": [{}], "triggers": []},
            "structures[0].begin: expected this field, got none",
        ),
    ],
)
def test_what_is_wrong_is_said_of_the_type_that_was_meant(response_format, said):
    with pytest.raises(ValueError, match=rf"^{re.escape(said)}$"):
        constraint_of(None, response_format)


def test_plain_text_is_no_constraint():
    assert constraint_of(None, {"type": "text"}) is None


def test_the_types_are_those_that_vllm_takes():
    from typing import get_args

    from vllm.entrypoints.generate.base.protocol import AnyResponseFormat

    models = get_args(AnyResponseFormat)
    kinds = {kind for model in models for kind in get_args(model.model_fields["type"].annotation)}
    assert kinds == set(KINDS.split(", "))
    assert len(models) == 3, "one more than formats.py chooses among"
