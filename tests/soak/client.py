"""One request: asked, read, and judged by the shape that its answer must have."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import Any

import httpx

from tests.soak.outcome import REFUSALS, Refused, Unfit
from tests.soak.questions import COMPLETIONS, MESSAGES, RESPONSES

Json = dict[str, Any]


def judge_status(status: int, body: bytes, headers: httpx.Headers) -> None:
    """Raise Refused or Unfit unless the status is 200."""
    if status == 200:
        return
    said = body[:300].decode(errors="replace")
    if status not in REFUSALS:
        raise Unfit(f"status {status}: {said}")
    if status == 503 and "retry-after" not in headers:
        raise Unfit(f"a 503 without Retry-After: {said}")
    raise Refused(f"status {status}")


async def whole(http: httpx.AsyncClient, path: str, body: Json) -> Json:
    """The JSON of an answer. Raises Refused, Unfit, httpx.HTTPError."""
    answer = await http.post(path, content=encoded(body))
    judge_status(answer.status_code, answer.content, answer.headers)
    parsed: Json = answer.json()
    return parsed


def encoded(body: Json) -> bytes:
    """As clients send it: halves of surrogate pairs as escapes."""
    return json.dumps(body).encode()


async def streamed(
    http: httpx.AsyncClient, path: str, body: Json, *, leaves_after: int | None = None
) -> list[Json] | None:
    """The chunks of a streamed answer; None if the client left after so many lines."""
    num_lines, chunks, is_over = 0, [], False
    async with http.stream("POST", path, content=encoded(body | {"stream": True})) as answer:
        if answer.status_code != 200:
            judge_status(answer.status_code, await answer.aread(), answer.headers)
        async for line in answer.aiter_lines():
            num_lines += 1
            if leaves_after is not None and num_lines > leaves_after:
                return None
            if line.startswith("data: {"):
                chunks.append(json.loads(line[6:]))
            is_over |= line == "data: [DONE]"
    last = chunks[-1] if chunks else {}
    if not (is_over or last.get("type") in ("response.completed", "response.incomplete", "message_stop")):
        raise Unfit(f"a stream that ends without its end: {str(last)[:200]}")
    for chunk in chunks:
        if chunk.get("error"):
            raise Unfit(f"an error in a stream: {str(chunk)[:200]}")
    return chunks


def text_of_stream(chunks: list[Json]) -> str:
    """The text of a chat's only choice. Raises Unfit unless it ended once."""
    choices = [c for chunk in chunks for c in chunk["choices"]]
    if sum(c["finish_reason"] is not None for c in choices) != 1:
        raise Unfit("expected one finish_reason in a stream of one choice")
    return "".join(c["delta"].get("content") or "" for c in choices)


def check_whole(path: str, answer: Json) -> None:
    """Raise Unfit unless an answer says how each of its choices ended, and what it cost."""
    if path == RESPONSES:
        fits = answer["status"] in ("completed", "incomplete") and answer["usage"]["output_tokens"] > 0
    elif path == MESSAGES:
        fits = answer["stop_reason"] is not None and answer["usage"]["output_tokens"] > 0
    else:
        fits = all(c["finish_reason"] in ("stop", "length") for c in answer["choices"])
        fits &= answer["usage"]["completion_tokens"] > 0 and bool(answer["choices"])
        if path == COMPLETIONS:
            fits &= all(isinstance(c["text"], str) for c in answer["choices"])
    if not fits:
        raise Unfit(f"an answer of another shape: {str(answer)[:300]}")


async def raw(host: str, port: int, sent: bytes, *, reads: int, pause_s: float, rng: random.Random) -> bytes:
    """Send bytes over a socket of its own and read so many pieces, slowly; then hang up."""
    reader, writer = await asyncio.open_connection(host, port, limit=2048)
    got = b""
    try:
        writer.write(sent)
        await writer.drain()
        for _ in range(reads):
            piece = await asyncio.wait_for(reader.read(rng.choice((64, 512, 2048))), 300)
            if not piece:
                break
            got += piece
            await asyncio.sleep(pause_s)
        if not reads:
            await asyncio.sleep(pause_s)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return got


def request_bytes(path: str, body: bytes, *, length: int | None = None) -> bytes:
    """An HTTP request with a body that may be shorter than it says."""
    head = f"POST {path} HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {length or len(body)}\r\n\r\n".encode() + body
