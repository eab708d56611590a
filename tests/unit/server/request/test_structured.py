from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.options import parse_options
from forkjoin_scheduler.settings import Settings
from forkjoin_server.request.field import prepare
from forkjoin_server.request.structured import is_structured
from forkjoin_server.routes import CHAT, GENERATE

JSON = {"response_format": {"type": "json_object"}}
BRANCHES = {"branches": [{"text": "a"}]}
CLOSED = BRANCHES | {"closing": "So:"}
VOTE = {"best_of": 2, "vote": "a"}
ANSWER = {"structured": "answer"}


def _of(name: str, **changes: object) -> Settings:
    return Settings.of(load(name).model_copy(update=changes), {})


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a"}},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tool_choice": {"type": "any"}},
        {"tool_choice": {"type": "allowed_tools", "mode": "required"}},
        {"text": {"format": {"type": "json_schema"}}},
        {"output_config": {"format": {"type": "json_schema"}}},
    ],
)
def test_each_routes_word_for_structured_output_is_known(body):
    assert is_structured(body)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"response_format": {"type": "text"}, "text": {"format": {"type": "text"}}, "tool_choice": "auto"},
        {"response_format": "x", "text": "x", "tool_choice": {"type": "auto"}},
    ],
)
def test_any_other_body_is_not_structured(body):
    assert not is_structured(body)


@pytest.mark.parametrize(
    ("asked", "reasons"),
    [(CLOSED, True), (CLOSED | ANSWER, False), (VOTE, False), (VOTE, True), (VOTE | ANSWER, False)],
)
def test_what_stands_before_the_answer_may_be_forked_by_the_request(asked, reasons):
    _, options = prepare({"forkjoin": asked} | JSON, CHAT, "k", _of("threadweaver"), reasons=reasons)
    assert options == parse_options(asked)


@pytest.mark.parametrize("reasons", [False, True])
def test_rounds_of_structured_answers_may_be_asked_for(reasons):
    _, options = prepare({"forkjoin": {"rounds": [2]}} | JSON, CHAT, "k", _of("pacore"), reasons=reasons)
    assert options.rounds == [2]


@pytest.mark.parametrize("path", [CHAT, GENERATE])
@pytest.mark.parametrize(
    ("asked", "reasons", "message"),
    [
        (CLOSED, False, r"structured output from the first token \(forkjoin\.structured: answer"),
        (BRANCHES, True, "structured output and no closing"),
        (BRANCHES | ANSWER, False, "structured output and no closing"),
    ],
)
def test_an_answer_that_would_hold_the_branches_is_refused(path, asked, reasons, message):
    structured = {"structured_outputs": {"regex": "a"}}
    body = {"sampling_params": structured} if path == GENERATE else structured
    with pytest.raises(BadRequestOptions, match=rf"^forkjoin\.branches: .*{message}"):
        prepare({"forkjoin": asked} | body, path, "k", _of("threadweaver"), reasons=reasons)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        (Settings(), {}, "it runs with --dialect none"),
        (_of("multiverse"), {}, r"where its answer begins \(its key `answer`\), but multiverse does not"),
        (_of("multiverse"), VOTE, r"but multiverse does not"),
        (_of("parathinker"), VOTE, "in each of best_of's threads .* but parathinker does not"),
    ],
)
def test_nobody_may_know_where_the_answer_begins(settings, more, message):
    with pytest.raises(BadRequestOptions, match=rf"^forkjoin\.structured: .*{message}"):
        prepare({"forkjoin": ANSWER | more} | JSON, CHAT, "k", settings)


@pytest.mark.parametrize("name", ["threadweaver", "parathinker"])
def test_a_dialect_may_know_where_its_answer_begins(name):
    _, options = prepare({"forkjoin": ANSWER} | JSON, CHAT, "k", _of(name))
    assert options.structured == "answer"


def test_any_other_place_is_refused_naming_the_one():
    with pytest.raises(BadRequestOptions, match=r"forkjoin\.structured: .*'answer'.*'threads'"):
        parse_options({"structured": "threads"})


@pytest.mark.parametrize(
    ("name", "asked", "reasons", "is_told"),
    [
        ("threadweaver", {}, False, False),
        ("threadweaver", {}, True, True),
        ("threadweaver", ANSWER, False, True),
        ("skeleton", {}, True, False),
    ],
)
def test_a_model_is_asked_to_fork_before_its_answer(name, asked, reasons, is_told):
    """But not to make its answer of threads, which no grammar lets through."""
    body = JSON | {"messages": [{"role": "user", "content": "x"}], "forkjoin": asked}
    settings = _of(name, instruction="\n\nFork!")
    told, _ = prepare(body, CHAT, "k", settings, reasons=reasons)
    assert told["messages"][0]["content"] == ("x\n\nFork!" if is_told else "x")
