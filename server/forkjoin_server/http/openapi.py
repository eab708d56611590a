"""What fork/join adds to the OpenAPI schema that vLLM's application publishes at ``/openapi.json``.

vLLM describes requests and leaves responses open. We describe the field ``forkjoin`` of a request, the
threads and the usage that an answer may carry, and our own routes.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from pydantic import BaseModel

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.request.options import RequestOptions
from forkjoin_server.answer import releasing
from forkjoin_server.answer.agents import FIELD, MultiAgent
from forkjoin_server.answer.answer_fields import ForkJoinThread, ForkJoinTree, ForkJoinUsage
from forkjoin_server.asgi import Json
from forkjoin_server.http import about, cancelling, families
from forkjoin_server.http.route_fields import ForkJoinAbout, ForkJoinFamilies
from forkjoin_server.routes import PATHS, RESPONSES

_REF = "#/components/schemas/"


def _answer(description: str, model: type[BaseModel]) -> Json:
    """A response of ours that ``model`` describes."""
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"{_REF}{model.__name__}"}}},
    }


_READY: Json = {
    "get": {
        "summary": "Ready",
        "description": "Whether the engine has answered within `--ready-timeout` and no drain has begun.",
        "responses": {
            "200": {"description": "Ready"},
            "503": {
                "description": "Starting, draining, or without an engine that answers: `reason` says which"
            },
        },
    }
}
_FAMILIES: Json = {
    "get": {
        "summary": "Families that run or wait",
        "description": "What each engine does at the moment: its families, its KV blocks, and what waits.",
        "responses": {
            "200": _answer("The engines with their families", ForkJoinFamilies),
            "404": {"description": "Fork/join is off"},
            "503": {"description": "An engine does not answer"},
        },
    }
}
_ABOUT: Json = {
    "get": {
        "summary": "Fork/join of this server",
        "description": "How this server forks: its version, its dialect and its limits.",
        "responses": {"200": _answer("The dialect and the limits in force", ForkJoinAbout)},
    }
}
_CANCEL: Json = {
    "post": {
        "summary": "Cancel a thread",
        "description": "End one thread of an answer that is being made, with the threads that it has forked. "
        "What it wrote is closed as at a limit, its `finish_reason` is `cancelled`, and the join goes on "
        "with the others. It ends within a step, unless it ends by itself in that one.",
        "parameters": [
            {
                "name": "thread_id",
                "in": "path",
                "required": True,
                "description": "as `include_threads` gave it: `th_…`",
                "schema": {"type": "string"},
            }
        ],
        "responses": {
            "202": {"description": "It ends: `id`, `object` (`forkjoin.thread`), `status` (`cancelling`)"},
            "404": {"description": "No running answer of this API key has such a thread"},
            "409": {"description": "It has ended already: the message says how"},
            "503": {"description": "The engine does not answer any more"},
        },
    }
}
_RELEASE: Json = {
    "post": {
        "summary": "Release a kept answer",
        "description": "End the lease of an answer that `forkjoin.keep` keeps. Requests that go on from it "
        "now keep what they share.",
        "parameters": [
            {
                "name": "response_id",
                "in": "path",
                "required": True,
                "description": "the `id` of the answer",
                "schema": {"type": "string"},
            }
        ],
        "responses": {
            "200": {
                "description": "It is kept no more: `id`, `object` (`forkjoin.kept`), `status` (`released`)"
            },
            "404": {"description": "No answer of this API key is kept by that id"},
            "503": {"description": "The engine does not answer any more"},
        },
    }
}


def publish(app: Any) -> None:
    """Let ``app``, vLLM's FastAPI application, describe what fork/join adds to it."""
    vllms = app.openapi

    @cache
    def openapi() -> Json:
        return with_forkjoin(vllms())

    app.openapi = openapi


def with_forkjoin(schema: Json) -> Json:
    """``schema`` of vLLM's application with what fork/join adds to it; ``schema`` stays as it is."""
    schema = copy.deepcopy(schema)
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas |= _described(RequestOptions, "ForkJoinOptions")
    for limit in Limits.model_fields:  # a request that leaves it out gets the server's
        schemas["ForkJoinOptions"]["properties"][limit].pop("default", None)
    for told in (ForkJoinUsage, ForkJoinThread, ForkJoinTree, ForkJoinAbout, ForkJoinFamilies):
        schemas |= _described(told)
    for path in PATHS:
        if body := _request_schema(schema, path):
            body.setdefault("properties", {})["forkjoin"] = {"$ref": f"{_REF}ForkJoinOptions"}
    if body := _request_schema(schema, RESPONSES):
        schemas |= _described(MultiAgent)
        body["properties"][FIELD] = {"$ref": f"{_REF}MultiAgent"}
    if "StreamOptions" in schemas:
        include = {
            "type": "boolean",
            "default": False,
            "description": "Whether a chat completion lists its threads.",
        }
        schemas["StreamOptions"].setdefault("properties", {})["include_threads"] = include
    schema["paths"] |= {"/ready": _READY, about.PATH: _ABOUT, families.PATH: _FAMILIES}
    schema["paths"] |= {cancelling.PATH: _CANCEL, releasing.PATH: _RELEASE}
    schema["info"] = {"title": "vllm-forkjoin", "version": schema["info"]["version"]}
    return schema


def _described(model: type[BaseModel], name: str | None = None) -> Json:
    """The schemas of ``model`` and of those in it, by their names."""
    schema = model.model_json_schema(ref_template=_REF + "{model}")
    named: Json = schema.pop("$defs", {})
    return named | {name or model.__name__: schema | {"title": name or model.__name__}}


def _request_schema(schema: Json, path: str) -> Json | None:
    """The object in ``schema`` that describes the body of a POST to ``path``, None if there is none."""
    content: Any = schema["paths"].get(path, {}).get("post", {}).get("requestBody", {}).get("content", {})
    name = content.get("application/json", {}).get("schema", {}).get("$ref", "").removeprefix(_REF)
    found: Json | None = schema["components"]["schemas"].get(name)
    return found
