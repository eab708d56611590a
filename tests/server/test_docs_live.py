"""What the docs say of the HTTP API and of the first steps is what a live server does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from docgen.http_api import page
from forkjoin_server.start.configuration import EMBEDDED_NAME

pytestmark = pytest.mark.server

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_the_http_api_is_made_from_what_the_server_publishes(server):
    schema = httpx.get(f"{server}/openapi.json", timeout=120).json()
    assert (DOCS / "http-api.md").read_text() == page(schema), (
        "run: python -m docgen.http_api > docs/http-api.md"
    )


def test_the_steps_of_the_quick_start_work_one_after_the_other(server, capsys):
    guide = (DOCS / "quick-start.md").read_text()
    steps = re.findall(r"```python\n(.*?)```", guide, flags=re.S)
    names: dict[str, object] = {}
    for step in steps:
        exec(step.replace("http://localhost:8000", server), names)
    names["client"].close()  # a program's end would
    said = capsys.readouterr().out
    assert len(steps) == 5
    assert EMBEDDED_NAME in guide
    assert "<Thread>\n1:" in said
    assert "0 a=482*731" in said


def test_the_tutorial_for_a_model_of_ones_own_shows_its_threads(server, capsys):
    (step,) = re.findall(r"```python\n(.*?)```", (DOCS / "serve-your-model.md").read_text(), flags=re.S)
    names: dict[str, Any] = {}
    exec(step.replace("http://localhost:8000", server), names)
    names["client"].close()  # a program's end would
    assert re.findall(r"^(\S+) stop \d+$", capsys.readouterr().out, flags=re.M) == ["a=482*731", "c=9047*36"]


def test_a_client_loop_and_the_request_that_replaces_it_write_the_same(server):
    steps = re.findall(r"```python\n(.*?)```", (DOCS / "from-a-client-loop.md").read_text(), flags=re.S)
    names: dict[str, Any] = {}
    for step in steps:
        exec(step.replace("http://localhost:8000", server), names)
    assert len(steps) == 4
    assert "<Thread>\n2:" in names["before"]
    assert names["CLOSING"] in names["weigh"](names["PROMPT"])
    names["client"].close()  # a program's end would
    names["pool"].shutdown()
