"""The page of the HTTP API, made from the OpenAPI schema of the server's application.

    python -m docgen.http_api                     the page, from an application made here
    python -m docgen.http_api --schema FILE       the page, from a server's /openapi.json

``docs/http-api.md`` is what it printed last; a test compares it with what a live server publishes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from forkjoin_server import cancelling
from forkjoin_server.routes import INVOCATIONS, PATHS

Json = dict[str, Any]

_REF = "#/components/schemas/"
#: Bounds beyond these are those of a machine's integers, which say nothing to a reader.
_WIDE = 1 << 32
_METHODS = ("get", "post", "put", "delete")
_HEAD = """<!-- Made by `python -m docgen.http_api > docs/http-api.md` from the server's OpenAPI schema. -->

# HTTP API

Every endpoint of `vllm serve` is there and works as it does there. Those that take
`forkjoin` may fork; a request without it forks as the server's dialect says. A running server publishes the
schema that this page is made from at `/openapi.json`, and lets you try it at `/docs`.
"""
_FORK_JOIN = """
## The field `forkjoin`

An object in the body of a request that may fork. An unknown key is a 400 that lists the known ones.

{options}
Each of `branches`:

{branches}
## What an answer says of its threads

vLLM's schema leaves responses open, so they are not repeated here: they are OpenAI's, and Anthropic's on
`/v1/messages`. Asked with `include_threads`, a chat completion has `message.threads`, a stream of one
`delta.threads`, and a response `reasoning` items with a `thread`. Each entry:

{threads}
Entries of a stream are put together by `index`: `content` is appended, all else is set. The Python SDK's
helper does so. The npm SDK's `.stream()` does not: its `finalChatCompletion()` keeps the last entries only.
Use [gather-threads.mjs](../examples/gather-threads.mjs) beside it, eight lines.

`/inference/v1/generate` (`--enable-scale-out`; tokens in, tokens out) takes `forkjoin` in its body too. Its
`choices[0].threads` have `token_ids` beside their text.

`usage.forkjoin` of a request that forked, or that asked for its threads. Where none ran, the answer has
`threads: []`, `num_threads` is 0, and all its tokens are on the critical path.

{usage}
## Cancel one thread

`POST {cancel_path}` ends one thread of an answer that is being made, with the
threads that it has forked. `thread_id` is its `id` above. The request has no body, and the API key that the
answer was asked for with. What the thread wrote so far is closed as at a limit and joined, its
`finish_reason` is `cancelled`, and the others go on. A thread of `best_of` then has no vote.

{cancel}
Where several API servers serve (`--api-server-count`), any of them may be asked.

## Threads as agents: the field `multi_agent`

`POST /v1/responses` tells threads as OpenAI's beta for several agents does, if its body has this object
(`client.beta.responses` of the SDKs; the header `openai-beta` is not needed):

{agents}
Each item and event then has an `agent` with its `agent_name`: `/root` is the answer, `/root/2` its second
thread, `/root/2/1` the first thread of that. A fork is a `multi_agent_call` with the action `spawn_agent`
for each thread, a join one with `wait_agent`. Each is followed by its `multi_agent_call_output`. What a
thread wrote is a `reasoning` item, and a part of the output of `wait_agent`. The text of the answer stays
the transcript. The SDKs' classes know all of these fields. With `forkjoin.include_threads` beside it, the
`thread` of each item and `usage.forkjoin` come too, which they do not know. Calls that are given back as
`input` are left out: the transcript holds what they did.
"""
_LINKS = {"ForkJoinOptions": "the-field-forkjoin", "MultiAgent": "threads-as-agents-the-field-multi_agent"}


def page(schema: Json) -> str:
    """The page, in Markdown, of ``schema``."""
    schemas = schema["components"]["schemas"]
    parts = [_HEAD, "## Endpoints\n", _endpoints(schema)]
    parts.append(
        _FORK_JOIN.format(
            options=_fields(schemas["ForkJoinOptions"]),
            branches=_fields(schemas["ExplicitBranch"]),
            threads=_fields(schemas["ForkJoinThread"]),
            usage=_fields(schemas["ForkJoinUsage"]),
            agents=_fields(schemas["MultiAgent"]),
            cancel_path=cancelling.PATH,
            cancel=_statuses(schema["paths"][cancelling.PATH]["post"]),
        )
    )
    parts.append("## Requests that may fork\n")
    parts += [_request(path, _body(schema, path)) for path in PATHS if path in schema["paths"]]
    return "\n".join(parts)


def _endpoints(schema: Json) -> str:
    rows = []
    for path, methods in sorted(schema["paths"].items()):
        for method in (m for m in _METHODS if m in methods):
            operation = methods[method]
            said = operation.get("description") or operation.get("summary", "")
            may_fork = method == "post" and path in (*PATHS, INVOCATIONS)
            rows.append([f"`{method.upper()} {path}`", _cell(said), "yes" if may_fork else ""])
    return _table(["endpoint", "what it does", "takes `forkjoin`"], rows)


def _statuses(operation: Json) -> str:
    rows = [[status, _cell(said["description"])] for status, said in operation["responses"].items()]
    return _table(["status", "meaning"], rows)


def _request(path: str, body: Json) -> str:
    return f"### `POST {path}`\n\n{_fields(body)}"


def _body(schema: Json, path: str) -> Json:
    ref = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    body: Json = schema["components"]["schemas"][ref.removeprefix(_REF)]
    return body


def _fields(schema: Json) -> str:
    """A table of the properties of ``schema``."""
    required = schema.get("required", ())
    rows = [
        [f"`{name}`", _type(field), _default(name, field, required), _cell(field.get("description", ""))]
        for name, field in schema["properties"].items()
    ]
    return _table(["field", "type", "default", "meaning"], rows)


def _type(field: Json) -> str:
    """What a field may hold, in a word or two; null is left out, for it is to leave the field out."""
    if options := field.get("anyOf") or field.get("oneOf"):
        kinds = [_type(option) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds)) if len(kinds) <= 4 else "one of several objects"
    if "$ref" in field:
        return _link(field["$ref"].removeprefix(_REF))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{json.dumps(v)}`" for v in field.get("enum", [field.get("const")]))
    kind = field.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(k for k in kind if k != "null")
    if kind == "array":
        return f"list of {_type(field.get('items', {}))}"
    return f"{kind}{_range(field)}"


def _link(name: str) -> str:
    return f"[object](#{_LINKS[name]})" if name in _LINKS else name.rpartition("__")[2]


def _range(field: Json) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if max(abs(low or 0), abs(high or 0)) > _WIDE:
        return ""
    if low is not None and high is not None:
        return f", {low} to {high}"
    return f", from {low}" if low is not None else f", up to {high}" if high is not None else ""


def _default(name: str, field: Json, required: Any) -> str:
    if name in required:
        return "required"
    default = field.get("default")
    return "" if default is None else f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    """The first paragraph of ``text`` as it may stand in a table."""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|").replace("<", "&lt;")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def schema_here() -> Json:
    """The schema of the application that serves the embedded model, made without an engine."""
    from vllm.entrypoints.launchers.app import build_app

    from forkjoin_server.cli import serve_args
    from forkjoin_server.openapi import publish

    app = build_app(serve_args([]), ("generate",))
    publish(app)
    schema: Json = app.openapi()
    return schema


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schema", type=Path, help="a file with a server's /openapi.json")
    args = parser.parse_args()
    print(page(json.loads(args.schema.read_text()) if args.schema else schema_here()), end="")


if __name__ == "__main__":
    main()
