from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.request.options import RequestOptions
from forkjoin_server.http.openapi import publish, with_forkjoin
from forkjoin_server.routes import CHAT, PATHS


def _vllms() -> dict:
    """The shape of what vLLM's application publishes: a body for each path, one for a path of no use to us."""
    bodies = {path: f"Body{number}" for number, path in enumerate((*PATHS, "/tokenize"))}

    def post(body):
        schema = {"$ref": f"#/components/schemas/{body}"}
        return {"post": {"requestBody": {"content": {"application/json": {"schema": schema}}}}}

    schemas = {body: {"properties": {"model": {"type": "string"}}} for body in bodies.values()}
    return {
        "info": {"title": "FastAPI", "version": "0.1.0"},
        "paths": {path: post(body) for path, body in bodies.items()},
        "components": {"schemas": schemas | {"StreamOptions": {"properties": {}}}},
    }


def _properties(schema: dict, path: str) -> dict:
    content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rpartition("/")[2]
    return schema["components"]["schemas"][name]["properties"]


@pytest.mark.parametrize("path", PATHS)
def test_each_request_that_may_fork_has_the_field(path):
    assert "forkjoin" in _properties(with_forkjoin(_vllms()), path)


def test_others_have_it_not():
    assert list(_properties(with_forkjoin(_vllms()), "/tokenize")) == ["model"]


def test_the_field_is_described_by_the_model_that_checks_it():
    schemas = with_forkjoin(_vllms())["components"]["schemas"]
    assert set(schemas["ForkJoinOptions"]["properties"]) == set(RequestOptions.model_fields)
    assert all(p.get("description") for p in schemas["ForkJoinOptions"]["properties"].values())
    assert "include_threads" in schemas["StreamOptions"]["properties"]


def test_every_reference_leads_somewhere():
    schema = with_forkjoin(_vllms())
    names = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    left, found = [schema], []
    while left:
        item = left.pop()
        if isinstance(item, dict):
            found += [v for k, v in item.items() if k == "$ref"]
            left += item.values()
        elif isinstance(item, list):
            left += item
    assert set(found) <= names


def test_what_vllm_made_stays_as_it_is():
    given = _vllms()
    before = copy.deepcopy(given)
    with_forkjoin(given)
    assert given == before


def test_an_application_without_a_route_is_described_without_it():
    given = _vllms()
    del given["paths"][CHAT]
    assert CHAT not in with_forkjoin(given)["paths"]


def test_a_published_application_describes_ready():
    app = SimpleNamespace(openapi=_vllms)
    publish(app)
    assert set(app.openapi()["paths"]["/ready"]["get"]["responses"]) == {"200", "503"}
