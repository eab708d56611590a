"""The body of a request: refused with an error that names what is wrong, or prepared for vLLM."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import msgspec

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.compiled import compile_options
from forkjoin_scheduler.request.explicit import explicit_dialect, explicit_plan
from forkjoin_scheduler.request.options import CompiledOptions, RequestOptions, parse_options
from forkjoin_scheduler.settings import Settings
from forkjoin_server.http.bodies import BodyMiddleware
from forkjoin_server.request.field import count_answers, prepare
from forkjoin_server.routes import PATHS
from tests.fuzz.source import Source
from tests.fuzz.tokens import FuzzTokenizer

#: Characters of its input that an error repeats at most, of each of its few parts.
MOST_REPEATED = 200
SETTINGS = (
    Settings(),
    Settings.of(load("skeleton"), {}),
    Settings.of(load("threadweaver"), {"max_threads_per_fork": 4, "max_total_tokens": 100}),
)
KEYS = (*RequestOptions.model_fields, "bogus", "", "x" * 300, "\ud800")
#: What vLLM answers, as far as it matters here.
ANSWER = {
    "choices": [{"index": 0, "message": {"content": "x"}}],
    "output": [],
    "usage": {"completion_tokens": 1, "total_tokens": 2},
}
BODY_KEYS = (
    "forkjoin", "messages", "prompt", "input", "n", "stream", "stream_options", "vllm_xargs", "request_id", "background", "tools",
    "response_format", "structured_outputs", "use_beam_search", "echo", "prompt_logprobs", "max_tokens", "stop", "model", "logprobs", "x",
)  # fmt: skip
OTHER_PATHS = ("/invocations", "/tokenize", "/x")
TOKENIZER = FuzzTokenizer(())


def target(data: bytes) -> None:
    source = Source(data)
    kind = source.below(8)
    if kind < 3:
        _options(source)
    elif kind < 7:
        _prepare(source)
    else:
        _middleware(source)


def forkjoin(source: Source) -> Any:
    """A ``forkjoin`` object: mostly of keys that are known, with values that are mostly of their type."""
    if source.one_in(12):
        return source.json()
    made: dict[str, Any] = {}
    for _ in range(source.below(4)):
        key = source.choice(KEYS)
        made[key] = _value(key, source) if source.below(4) else source.json()
    return made


def _value(key: str, source: Source) -> Any:
    if key == "branches":
        fields = ("title", "text", "bogus")
        return [
            {source.choice(fields): source.text() for _ in range(source.below(3))}
            for _ in range(source.below(5))
        ]
    if key in ("closing", "vote"):
        return source.text(8)
    if key in ("enabled", "include_threads", "wait_for_all"):
        return source.below(2) == 1
    if key == "prune":
        return source.choice(("confidence", "agreement", "memory", "own", "most"))
    if key == "confidence":
        return source.below(12) / 10
    return source.below(300)


def body(source: Source) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(source.below(5)):
        made[source.choice(BODY_KEYS)] = source.json()
    if source.below(4):
        made["messages"] = [{"role": source.choice(("user", "system", "tool")), "content": source.json()}]
    if source.below(4):
        made["forkjoin"] = forkjoin(source)
    return made


def _options(source: Source) -> None:
    value = forkjoin(source)
    if source.one_in(4):
        value = json.dumps(value)
    try:
        options = parse_options(value)
    except BadRequestOptions as error:
        check_error(str(error), value)
        return
    if options.forks_at_prompt:
        compiled = compile_options(options, TOKENIZER.encode)
        dialect, plan = explicit_dialect(compiled, compiled.limits(Limits())), explicit_plan(compiled)
        assert len(plan.threads) == (options.best_of or len(options.branches or ())) == dialect.width
        # What the engine is sent is read there as it was meant.
        sent = msgspec.msgpack.decode(msgspec.msgpack.encode(msgspec.to_builtins(compiled)))
        assert msgspec.convert(sent, CompiledOptions) == compiled


def _prepare(source: Source) -> None:
    given, path = body(source), source.choice(PATHS)
    before = repr(given)
    assert count_answers(given, path) is not None
    try:
        prepared, options = prepare(given, path, "key", source.choice(SETTINGS))
    except BadRequestOptions as error:
        check_error(str(error), given)
        return
    finally:
        assert repr(given) == before, "a body that is refused or read must stay as it was"
    assert "forkjoin" not in prepared
    assert isinstance(options, RequestOptions)
    xargs = prepared.get("vllm_xargs")
    assert not (isinstance(xargs, dict) and "forkjoin" in xargs)


def _middleware(source: Source) -> None:
    """Through the middleware, from raw bytes in any pieces: one answer, with a body that is JSON."""
    path = source.choice((*PATHS, *OTHER_PATHS))
    raw = json.dumps(body(source)).encode()
    for _ in range(source.below(3)):
        at = source.below(len(raw) + 1)
        raw = (
            raw[:at]
            + source.choice((b"", b"\xff", b"\x00", b'"', b"{", b"[" * 2000, b"\\ud800"))
            + raw[at + source.below(3) :]
        )
    headers = [(b"content-type", b"application/json")]
    sent, seen = asyncio.run(_ask(path, raw, headers, source.below(3) + 1))
    starts = [m for m in sent if m["type"] == "http.response.start"]
    assert len(starts) == 1
    assert sent[0] is starts[0]
    assert not sent[-1].get("more_body")
    answer = b"".join(m.get("body", b"") for m in sent[1:])
    if starts[0]["status"] != 200:
        assert starts[0]["status"] in (400, 413)
        check_error(json.loads(answer)["error"]["message"], raw)
        assert not seen
    else:
        assert len(seen) == 1
        assert json.loads(answer)["choices"][0]["message"]["content"] == "x"


async def _ask(
    path: str, raw: bytes, headers: list[tuple[bytes, bytes]], num_parts: int
) -> tuple[list[Any], list[bytes]]:
    size = len(raw) // num_parts + 1
    parts = [raw[i : i + size] for i in range(0, len(raw), size)] or [b""]
    sent: list[Any] = []
    seen: list[bytes] = []

    async def receive() -> dict[str, Any]:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(ANSWER).encode()})

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    await BodyMiddleware(app)(scope, receive, send)
    return sent, seen


def check_error(message: str, given: object) -> None:
    """An error is one that can be sent, and repeats little of its input: no long run of one character."""
    message.encode()
    assert message
    assert len(message) < 4000, f"{len(message)} characters"
    assert not re.search(rf"(.)\1{{{MOST_REPEATED}}}", message), f"repeats its input: {message[:500]}"
