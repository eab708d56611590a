"""The input of a batch: one request a line, checked before any is asked.

As with OpenAI's batches, a file with a wrong line is not begun. What only a server can judge of a request
becomes that request's answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from forkjoin.errors import ForkJoinError
from forkjoin.parsing import parsed

#: Each row of an output begins so.
ID_PREFIX = "batch_req_"
#: The routes that may fork, and those of embeddings. vLLM's ``score`` and ``rerank`` have several paths.
URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
_ENDS = ("/score", "/rerank")
#: What makes an answer that is no whole one, and so no row.
_NOT_WHOLE = ("stream", "background")
_MAX_SHOWN = 20


class BadBatch(ForkJoinError):
    """The input or the output of a batch is not what it should be. Nothing was asked."""


@dataclass(frozen=True)
class Line:
    """One request of the input."""

    custom_id: str
    url: str
    #: JSON.
    body: bytes

    @property
    def id(self) -> str:
        """Names the request by all that it says: another body is another request."""
        said = json.dumps([self.custom_id, self.url, self.body.decode()])
        return ID_PREFIX + hashlib.sha256(said.encode()).hexdigest()[:32]


def read_lines(path: Path) -> list[Line]:
    """The requests of the file ``path``. Raises BadBatch, which names each wrong line."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadBatch(f"--input-file: expected a file of requests, got {path}: {error.strerror}") from error
    return checked(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), str(path))


def checked(raw: Iterable[bytes], name: str) -> list[Line]:
    """The requests of the lines ``raw``; empty ones are none. Raises BadBatch, which names wrong ones."""
    lines: list[Line] = []
    numbers: dict[str, int] = {}
    faults = []
    for number, text in enumerate(raw, 1):
        if not text.strip():
            continue
        try:
            line = _line(text)
        except _BadLine as error:
            faults.append(f"{name}:{number}: {error}")
            continue
        first = numbers.setdefault(line.custom_id, number)
        if first == number:
            lines.append(line)
        else:
            said = f"custom_id: expected one of its own, got {_shown(line.custom_id)}, which line {first} has"
            faults.append(f"{name}:{number}: {said}: give each line another")
    if faults:
        more = [f"and {len(faults) - _MAX_SHOWN} more"] if len(faults) > _MAX_SHOWN else []
        raise BadBatch("\n".join(["nothing was asked:", *faults[:_MAX_SHOWN], *more]))
    if not lines:
        raise BadBatch(f"{name}: expected a request on each line, got none: {_EXAMPLE}")
    return lines


class _BadLine(Exception):
    """What is wrong with a line."""


def _line(text: bytes) -> Line:
    """The request of one line. Raises _BadLine, which says what is wrong with it."""
    try:
        given = parsed(text)
    except ValueError as error:
        raise _BadLine(
            f"expected a JSON object, got {_shown(text)}: {error}: write it on one line"
        ) from error
    if not isinstance(given, dict):
        raise _BadLine(f"expected a JSON object, got {_shown(given)}: {_EXAMPLE}")
    if unknown := given.keys() - {"custom_id", "method", "url", "body"}:
        raise _BadLine(f"expected custom_id, method, url and body, got {_shown(min(unknown))} too: drop it")
    custom_id, method, url, body = (given.get(key) for key in ("custom_id", "method", "url", "body"))
    if not (isinstance(custom_id, str) and custom_id):
        raise _BadLine(f"custom_id: expected a text, got {_shown(custom_id)}: {_EXAMPLE}")
    if method != "POST":
        raise _BadLine(f'method: expected "POST", got {_shown(method)}: {_EXAMPLE}')
    if not (isinstance(url, str) and (url in URLS or (url.startswith("/") and url.endswith(_ENDS)))):
        raise _BadLine(
            f"url: expected one of {', '.join(URLS)}, or a path that ends in {' or '.join(_ENDS)}, got "
            f"{_shown(url)}: send other requests by themselves"
        )
    try:
        httpx.URL(f"http://localhost{url}")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _BadLine(f"url: expected one that can be sent, got {_shown(url)}: correct it") from error
    if not isinstance(body, dict):
        raise _BadLine(f"body: expected a JSON object, got {_shown(body)}: {_EXAMPLE}")
    for key in _NOT_WHOLE:
        if body.get(key):
            raise _BadLine(f"body.{key}: expected none, for a batch has whole answers, got true: drop it")
    try:
        return Line(custom_id, url, json.dumps(body, allow_nan=False).encode())
    except ValueError as error:
        raise _BadLine(f"body: expected what JSON can say, got NaN or Infinity: {error}") from error


_EXAMPLE = (
    'write {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": …, '
    '"messages": …}}'
)


def _shown(value: Any) -> str:
    """The beginning of what was given; that nothing was, too."""
    if value is None:
        return "none"
    text = value.decode(errors="replace") if isinstance(value, bytes) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
