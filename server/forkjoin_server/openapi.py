"""What fork/join adds to the OpenAPI schema that vLLM's application publishes at ``/openapi.json``.

vLLM describes requests and leaves responses open; so are ours described: the request's ``forkjoin``
field, the threads and the usage that an answer may carry, and our own routes.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from forkjoin_scheduler.options import RequestOptions
from forkjoin_server import about, cancelling, families
from forkjoin_server.agents import FIELD, MultiAgent
from forkjoin_server.routes import PATHS, RESPONSES
from forkjoin_server.threads import Json

_REF = "#/components/schemas/"

_USAGE: Json = {
    "title": "ForkJoinUsage",
    "description": "`usage.forkjoin` of an answer.",
    "type": "object",
    "properties": {
        "num_threads": {"type": "integer", "description": "threads that ran"},
        "critical_path_tokens": {
            "type": "integer",
            "description": "the parent's own tokens and, of each fork, the longest thread's",
        },
        "total_tokens": {
            "type": "integer",
            "description": "generated tokens, each once, of all answers: what is also `completion_tokens`",
        },
        "vote": {
            "type": "object",
            "description": "only of `best_of`: the thread that was chosen (`index`), what most voted for "
            "(`result`), and the indices of threads that did not vote: those that were `cut` and those "
            "`not_started`, for the vote was decided, those that were `pruned` as the request asked for, and "
            "those that the client `cancelled`",
            "properties": {
                "index": {"type": "integer"},
                "result": {"type": ["string", "null"]},
                "cut": {"type": "array", "items": {"type": "integer"}},
                "not_started": {"type": "array", "items": {"type": "integer"}},
                "pruned": {"type": "array", "items": {"type": "integer"}},
                "cancelled": {"type": "array", "items": {"type": "integer"}},
            },
        },
    },
}
_THREAD: Json = {
    "title": "ForkJoinThread",
    "description": "An entry of `message.threads`; in a stream of `delta.threads`, `index` stands always, "
    "`content` comes in pieces, all else once.",
    "type": "object",
    "properties": {
        "index": {"type": "integer", "description": "dense over the answer, in the order of starting"},
        "id": {"type": "string"},
        "parent_id": {"type": "string", "description": "the thread that forked; `root`: the request"},
        "title": {"type": "string", "description": "from the outline"},
        "content": {"type": "string"},
        "token_ids": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "of tokens in, tokens out only",
        },
        "finish_reason": {
            "type": "string",
            "description": "`stop`; `length`: a limit, or the end of the answer, cut the thread; `cut`: it "
            "was stopped, for it could change nothing any more; `not_started`: the same, before it wrote "
            "anything; `pruned`: the policy of `forkjoin.prune` stopped it; `cancelled`: the client ended "
            "it, or a thread above it",
        },
        "usage": {"type": "object", "properties": {"completion_tokens": {"type": "integer"}}},
    },
    "required": ["index"],
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
        "description": "What each engine does at the moment, at most a second old: `kv_blocks`, `waiting`, "
        "what is `expected` of one more request, and its `families`: at most a hundred, those that have "
        "begun first; `num_left_out` counts the others. Of each: `state` (`waiting`, `prefill`, `decoding`, "
        "`forked`, `joining`), `threads` by state, tokens, KV blocks held now and at most, and those that "
        "admission expected. It has no text of clients. A key of `--api-key-file` gets null as the "
        "`request_id` of others' requests.",
        "responses": {
            "200": {"description": "The engines with their families"},
            "404": {"description": "Fork/join is off"},
            "503": {"description": "An engine does not answer"},
        },
    }
}
_ABOUT: Json = {
    "get": {
        "summary": "Fork/join of this server",
        "description": "How this server forks: its version, `dialect` (null: fork/join is off) with its "
        "`name`, `trigger`, `join`, `parent_waits` and `max_depth`, and its `limits`.",
        "responses": {"200": {"description": "The dialect and the limits in force"}},
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
                "description": "as `include_threads` told it: `th_…`",
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
    options = RequestOptions.model_json_schema(ref_template=_REF + "{model}")
    schemas |= options.pop("$defs", {})
    schemas |= {"ForkJoinOptions": options | {"title": "ForkJoinOptions"}}
    schemas |= {"ForkJoinUsage": _USAGE, "ForkJoinThread": _THREAD}
    for path in PATHS:
        if body := _request_schema(schema, path):
            body.setdefault("properties", {})["forkjoin"] = {"$ref": f"{_REF}ForkJoinOptions"}
    if body := _request_schema(schema, RESPONSES):
        schemas["MultiAgent"] = MultiAgent.model_json_schema()
        body["properties"][FIELD] = {"$ref": f"{_REF}MultiAgent"}
    if "StreamOptions" in schemas:
        include = {
            "type": "boolean",
            "default": False,
            "description": "show the threads of a chat completion",
        }
        schemas["StreamOptions"].setdefault("properties", {})["include_threads"] = include
    schema["paths"] |= {"/ready": _READY, about.PATH: _ABOUT, families.PATH: _FAMILIES}
    schema["paths"] |= {cancelling.PATH: _CANCEL}
    schema["info"] = {"title": "vllm-forkjoin", "version": schema["info"]["version"]}
    return schema


def _request_schema(schema: Json, path: str) -> Json | None:
    """The object in ``schema`` that describes the body of a POST to ``path``, None if there is none."""
    content: Any = schema["paths"].get(path, {}).get("post", {}).get("requestBody", {}).get("content", {})
    name = content.get("application/json", {}).get("schema", {}).get("$ref", "").removeprefix(_REF)
    found: Json | None = schema["components"]["schemas"].get(name)
    return found
