"""A request's path in ARCHITECTURE.md is the path that a request takes, in few enough files to read."""

from __future__ import annotations

from docgen.figures.request_path import steps
from tests.server import way

#: A reader is to open no more (a room counts as the one file of it that is asked).
MOST_FILES = 25


def test_the_path_of_a_request_names_few_files():
    named = [file for step in steps() for file in step.files]
    assert len(named) == len(set(named))
    assert len(named) <= MOST_FILES


def test_each_file_of_the_path_runs_for_a_request():
    ran = way.files()
    named = [file for step in steps() for file in step.files]
    assert [file for file in named if not any(f"/{file}" in f"/{path}" for path in ran)] == []
