"""What pydantic finds wrong, in our words."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from forkjoin_scheduler.wrong_fields import expected_and_got, place, sentence


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int

    @field_validator("size")
    @classmethod
    def _is_even(cls, size: int) -> int:
        if size % 2:
            raise ValueError(
                "expected an even size" if size < 10 else f"expected a size below 10, got {size}"
            )
        return size


class Tree(BaseModel):
    leaves: list[Leaf]


@pytest.mark.parametrize(
    ("leaf", "said"),
    [
        ({"size": 2, "colour": 1}, "tree.leaves[0].colour: unknown key"),
        ({}, "tree.leaves[0].size: expected this field, got none"),
        ({"size": 3}, "tree.leaves[0].size: expected an even size, got 3"),
        ({"size": 11}, "tree.leaves[0].size: expected a size below 10, got 11"),
    ],
)
def test_a_wrong_field_is_a_sentence_that_says_where_it_is_and_once_what_was_got(leaf, said):
    with pytest.raises(ValidationError) as caught:
        Tree.model_validate({"leaves": [leaf]})
    (wrong,) = caught.value.errors()
    assert f"{place('tree', wrong['loc'])}: {expected_and_got(wrong)}" == said


def test_a_sentence_is_cut_only_for_who_asks():
    wrong = {"type": "value_error", "msg": f"Value error, {'x' * 300}", "loc": (), "input": {}}
    assert sentence(wrong) == expected_and_got(wrong) == "x" * 300
    assert expected_and_got(wrong, 10) == "xxxxxxx..."
