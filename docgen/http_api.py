"""The page of the HTTP API, made from the OpenAPI schema of the server's application.

    python -m docgen.http_api                     the page, from an application made here
    python -m docgen.http_api --schema FILE       the page, from a server's /openapi.json

``docs/http-api.md`` is what it printed last; a test compares it with what a live server publishes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from forkjoin.answer import Answer, Thread
from forkjoin.events import AnswerDelta, Finished, Forked, Joined, SegmentEnded, ThreadDelta, ThreadEnded
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_server.answer import releasing
from forkjoin_server.http import cancelling
from forkjoin_server.routes import INVOCATIONS, PATHS

Json = dict[str, Any]

_REF = "#/components/schemas/"
#: A bound of a machine's integers, which says nothing to a reader.
_WIDE = (1 << 31) - 1
_METHODS = ("get", "post", "put", "delete")
EVENTS: tuple[type[BaseModel], ...] = (
    Forked,
    ThreadDelta,
    ThreadEnded,
    Joined,
    SegmentEnded,
    AnswerDelta,
    Finished,
)
_HEAD = """<!-- Made by `python -m docgen.http_api > docs/http-api.md` from the server's OpenAPI schema. -->

# HTTP API

Every endpoint of `vllm serve` works as it does there. A running server publishes the schema that this page is made
from at `/openapi.json`, and lets you try it at `/docs`.

## Endpoints

These requests may fork, and take the field [`forkjoin`](#the-field-forkjoin). Without the field, a request forks as the
server's dialect says.

{forking}
These do not fork:

{others}"""
_FORK_JOIN = """
## The field `forkjoin`

An object in the body of a request that may fork. An unknown key is a 400 that lists the known ones.

{options}
Each of `branches`:

{branches}
A stream lists its threads if `stream_options` has `include_threads`:

{stream_options}
## What an answer says of its threads

| endpoint | an answer with `include_threads` | a stream with `include_threads` |
| --- | --- | --- |
| `/v1/chat/completions` | `message.threads` | `delta.threads` |
| `/v1/responses` | a `reasoning` item with a `thread` for each | the events of these items, such as `response.reasoning_text.delta` |
| `/inference/v1/generate` (`--enable-scale-out`) | `choices[0].threads` | `choices[0].threads` |
| `/v1/completions`, `/v1/messages` | no threads | no threads |

Each entry of `threads` has these fields. The `thread` of a `reasoning` item has all but `content`, which is the item's:

{threads}
A response sends `waits_for` in the `thread` of a `response.reasoning_text.delta` without text.

Put the entries of a stream together by `index`: append `content`, set all else. The Python SDK's
helper does so. The npm SDK's `.stream()` does not: its `finalChatCompletion()` keeps the last entries only.
Use [gather-threads.mjs](../examples/gather-threads.mjs) beside it, eight lines.

A request that forked, that asked for its threads or its tree, that goes on from a tree, or that asks for a
[kept answer](kept-answers.md), has
`usage.forkjoin` on each of these endpoints. If no thread ran,
the answer has `threads: []`, `num_threads` is 0, and all its tokens are on the critical path.

{usage}
## The tree of an answer

`forkjoin.return_tree` gives each answer its [tree](offline.md#the-tree), in an answer and in a stream, where it comes once:

| endpoint | in an answer | in a stream |
| --- | --- | --- |
| `/v1/chat/completions`, `/v1/completions`, `/inference/v1/generate` | `choices[].tree` | `choices[].tree`, of the chunk that has the `finish_reason` |
| `/v1/chat/completions/batch` | `choices[].tree` | |
| `/v1/responses` | `tree` | `response.tree` of the last event |
| `/v1/messages` | refused | refused |

{tree}
`Tree.from_dict` of the Python client reads it. The numbers are those that the same request has [offline](offline.md), with its
seed. Log-probabilities are always there, those of the likeliest tokens if the request asks for them
(`logprobs`, `top_logprobs`). One that is not finite is -9999. An answer that ends early (a stop string, a limit, an abort) has its tree so far.
A response of several turns (tools of the server) has the tree of the last one. Seeds have up to 63 bits, which `JSON.parse` of
JavaScript rounds.

With `forkjoin.stream_segments`, a stream sends each segment when nothing changes it any more, in a chunk of its own before the next one of
the answer: `choices[].segments`, each with its `number` in the tree and its `segment`. On `/v1/responses` the event
`response.forkjoin.segments` has them, with a `sequence_number` as all events there. The `tree` at the end then has `null` in the place of
each segment that was sent. The Python and the TypeScript client put the tree together. The last segment of
a thread comes when the thread has joined.

A request goes on from the tree of an answer that was cut off with [`continues_tree`](offline.md#go-on-from-a-tree).

A request whose trees may be larger than `--max-tree-tokens` is a 400: what all answers may generate, and the prompt once for each,
since each tree repeats it. So are `background`, beam search and prompt embeddings, also those in a chat's messages.
A response that is fetched later has no tree. Neither has an answer whose tree could not be built: that is a bug, which
`forkjoin:internal_errors_total` counts as `where="tree"`.

## Cancel one thread

`POST {cancel_path}` ends one thread of a running answer and the threads
that it has forked. `thread_id` is its `id`. The request has no body. It needs the API key that asked for the answer. What
the thread wrote so far is closed as at a limit and joined, and its `finish_reason` is `cancelled`. The other threads
continue. A thread of `best_of` then has no vote.

{cancel}
With several API servers (`--api-server-count`), any of them takes the request.

## Release a kept answer

`POST {release_path}` ends the lease of an answer that `forkjoin.keep` [keeps](kept-answers.md). It has
no body, and needs the API key that asked for the answer.

{release}
## Threads as agents: the field `multi_agent`

`POST /v1/responses` shows threads as OpenAI's beta for several agents does, if its body has this object
(`client.beta.responses` of the SDKs; the header `openai-beta` is not needed):

{agents}
Each item and event then has an `agent` with its `agent_name`. `/root` is the answer, `/root/2` its second
thread, `/root/2/1` the first thread of that one.

| what happens | items |
| --- | --- |
| a fork | for each thread a `multi_agent_call` with the action `spawn_agent`, and its `multi_agent_call_output` |
| a thread writes | a `reasoning` item |
| a thread ends before its time | its `reasoning` item has the status `incomplete`: it was cut, pruned or cancelled, or never started |
| a join | a `multi_agent_call` with the action `wait_agent`; its `multi_agent_call_output` has the threads' texts |

The text of the answer stays the transcript. The SDKs' classes know all of these fields. With
`forkjoin.include_threads`, each item also has its `thread`, and the answer `usage.forkjoin`, which these classes do not
know. Calls that a client sends back as `input` are left out, because the transcript holds their result.

## What the server says of itself

`GET /v1/forkjoin` says how the server forks:

{about}
`GET /v1/forkjoin/families` says what runs. Engines are asked once a second at most:

{families}
## Events of the Python client

The [Python client](python-client.md) turns a stream into these events. Each has a `type`, and cannot be changed.
{events}
`Answer` is a chat completion as it is so far:

{answer}
Each of its `threads`:

{answer_thread}
## vLLM's fields

The other fields of these requests are vLLM's, and work as they do there. `/docs` of a running server describes each.
"""
_LINKS = {"ForkJoinOptions": "the-field-forkjoin", "MultiAgent": "threads-as-agents-the-field-multi_agent"}
#: What a stream may be asked for beside vLLM's own.
_OURS_OF_STREAMS = "include_threads"


def page(schema: Json) -> str:
    """The page, in Markdown, of ``schema``."""
    schemas = schema["components"]["schemas"]
    stream_options = schemas["StreamOptions"]["properties"][_OURS_OF_STREAMS]
    parts = [
        _HEAD.format(forking=_endpoints(schema, may_fork=True), others=_endpoints(schema, may_fork=False)),
        _FORK_JOIN.format(
            options=_asked(schemas["ForkJoinOptions"]),
            branches=_asked(schemas["ExplicitBranch"]),
            stream_options=_asked({"properties": {_OURS_OF_STREAMS: stream_options}}),
            threads=_told(schemas["ForkJoinThread"], schemas),
            usage=_told(schemas["ForkJoinUsage"], schemas),
            tree=_told(schemas["ForkJoinTree"], schemas),
            agents=_asked(schemas["MultiAgent"]),
            cancel_path=cancelling.PATH,
            cancel=_statuses(schema["paths"][cancelling.PATH]["post"]),
            release_path=releasing.PATH,
            release=_statuses(schema["paths"][releasing.PATH]["post"]),
            about=_told(schemas["ForkJoinAbout"], schemas),
            families=_told(schemas["ForkJoinFamilies"], schemas),
            events="".join(map(_event, EVENTS)),
            answer=_told(Answer.model_json_schema(), {}),
            answer_thread=_told(Thread.model_json_schema(), {}),
        ),
    ]
    parts += [_vllms(path, _body(schema, path)) for path in PATHS if path in schema["paths"]]
    return "\n".join(parts)


def _endpoints(schema: Json, *, may_fork: bool) -> str:
    """The endpoints of which all may fork, or none."""
    rows = []
    for path, methods in sorted(schema["paths"].items()):
        for method in (m for m in _METHODS if m in methods):
            operation = methods[method]
            said = operation.get("description") or operation.get("summary", "")
            if may_fork == (method == "post" and path in (*PATHS, INVOCATIONS)):
                rows.append([f"`{method.upper()} {path}`", _cell(said)])
    return _table(["endpoint", "what it does"], rows)


def _statuses(operation: Json) -> str:
    rows = [[status, _cell(said["description"])] for status, said in operation["responses"].items()]
    return _table(["status", "meaning"], rows)


def _event(event: type[BaseModel]) -> str:
    fields = event.model_json_schema()
    del fields["properties"]["type"]
    return f"\n`{event.__name__}`: {_cell(fields['description'])}\n\n{_told(fields, {})}"


def _vllms(path: str, body: Json) -> str:
    """The names of the fields that vLLM takes at ``path``."""
    names = [f"`{name}`" for name, field in body["properties"].items() if _name_of(field) not in _LINKS]
    return f"`POST {path}`: {', '.join(names)}.\n"


def _body(schema: Json, path: str) -> Json:
    ref = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    body: Json = schema["components"]["schemas"][ref.removeprefix(_REF)]
    return body


def _asked(schema: Json) -> str:
    """A table of what a request may hold, with defaults."""
    required = schema.get("required", ())
    rows = [
        [f"`{name}`", _type(field), _default(name, field, required), _cell(field["description"])]
        for name, field in schema["properties"].items()
    ]
    return _table(["field", "type", "default", "meaning"], rows)


def _told(schema: Json, schemas: Json) -> str:
    """A table of what an answer or an event holds, the fields of objects of ``schemas`` included."""
    return _table(["field", "type", "meaning"], list(_rows(schema, schemas)))


def _rows(schema: Json, schemas: Json, within: str = "") -> Iterator[list[str]]:
    for name, field in schema["properties"].items():
        kind = _type(field) + (" or null" if {"type": "null"} in field.get("anyOf", []) else "")
        yield [f"`{within}{name}`", kind, _cell(field["description"])]
        if inner := schemas.get(_object_in(field)):
            several = "[]" if field.get("type") == "array" else ""
            yield from _rows(inner, schemas, f"{within}{name}{several}.")


def _name_of(field: Json) -> str:
    """What the object is called that a field holds, if any."""
    ref: str = field.get("$ref", "")
    return ref.rpartition("/")[2]


def _object_in(field: Json) -> str:
    """What the objects are called that a field holds, one or several, if any."""
    options = [field, field.get("items", {}), *field.get("anyOf", ())]
    return next((name for option in options if (name := _name_of(option))), "")


def _type(field: Json) -> str:
    """What a field may hold, in a word or two; null is left out, for it is to leave the field out."""
    if options := field.get("anyOf") or field.get("oneOf"):
        kinds = [_type(option) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if name := _name_of(field):
        return f"[object](#{_LINKS[name]})" if name in _LINKS else "object"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{json.dumps(v)}`" for v in field.get("enum", [field.get("const")]))
    kind = field.get("type", "any")
    if kind == "array":
        if "enum" in field.get("items", {}):
            return f"list of {_type(field['items'])}"
        return f"{_range(field, 'minItems', 'maxItems')} {_type(field.get('items', {}))}s".strip()
    if kind == "string":
        return f"string{', not empty' if field.get('minLength') else ''}"
    limits = _range(field, "minimum", "maximum")
    return f"{kind}, {limits}" if limits else kind


def _range(field: Json, least: str, most: str) -> str:
    low, high = field.get(least), field.get(most)
    if high is not None and high >= _WIDE:
        high = None
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"{low} or more" if low is not None else f"at most {high}" if high is not None else ""


def _default(name: str, field: Json, required: Any) -> str:
    if name in required:
        return "required"
    if name in Limits.model_fields:
        return "the server's"
    default = field.get("default")
    return "unset" if default is None else f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    """The first paragraph of ``text`` as it may stand in a table."""
    first = " ".join(text.partition("\n\n")[0].split())
    return first.replace("|", "\\|").replace("<", "&lt;").replace("``", "`")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def schema_here() -> Json:
    """The schema of the application that serves the embedded model."""
    from docgen.vllm_seam.application import application

    schema: Json = application().openapi()
    return schema


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schema", type=Path, help="a file with a server's /openapi.json")
    args = parser.parse_args()
    print(page(json.loads(args.schema.read_text()) if args.schema else schema_here()), end="")


if __name__ == "__main__":
    main()
