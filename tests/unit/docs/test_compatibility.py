"""The table of model families in docs/compatibility.md is that of the tests that run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.shape_table import CASES, OTHERS, TITLES, Other, table

ROOT = Path(__file__).parents[3]


def test_the_table_of_model_families_is_that_of_the_tests():
    page = (ROOT / "docs" / "compatibility.md").read_text()
    assert table() in page, "python -m tests.engine.shape_table prints it"


def test_each_shape_has_a_case():
    assert set(TITLES) == {case.shape for case in CASES}


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row.test)
def test_a_row_of_another_test_names_one_that_is_there(row: Other):
    assert f"def {row.test}(" in (ROOT / "tests" / row.folder / f"{row.file}.py").read_text()
