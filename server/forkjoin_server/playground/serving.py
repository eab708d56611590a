"""Serves the files of the playground, at ``/playground/``.

They are built from ``playground/`` of the repository into ``built/`` beside this module. They hold
nothing of the server's: the page asks the API like any other client, with a key where one is needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from forkjoin_server.asgi import Message, Send

FOLDER = Path(__file__).parent / "built"
#: Where the page is; its files are below it.
ROOT = "/playground"
_PAGE = f"{ROOT}/"
_INDEX = "index.html"

#: Nothing from elsewhere and nothing inline; the page talks to its own server only.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
#: The names of these files hold a hash of what is in them.
_HASHED = (b"cache-control", b"public, max-age=31536000, immutable")
_CHECKED = (b"cache-control", b"no-cache")
_TYPES = {".js": "text/javascript", ".html": "text/html", ".css": "text/css", ".svg": "image/svg+xml"}


class PlaygroundSettings(BaseModel):
    """The settings of the playground."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    no_playground: bool = Field(
        default=False,
        description=f"Do not serve the page {ROOT}, which shows in a browser how an answer forks and joins.",
    )


@dataclass(frozen=True)
class _File:
    data: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    etag: bytes


class Playground:
    """Answers for the page's files. ``leads_home``: whether ``/`` redirects to the page."""

    def __init__(self, *, leads_home: bool, folder: Path = FOLDER) -> None:
        self._files = {_path(f, folder): _read(f) for f in folder.rglob("*") if _is_served(f)}
        # To a relative address, which holds below a root path and behind a proxy, too.
        self._redirects = dict.fromkeys([ROOT, *(["/"] if leads_home else [])], b"playground/")

    @property
    def paths(self) -> frozenset[str]:
        """All that it answers."""
        return frozenset(self._files) | frozenset(self._redirects)

    def answers(self, scope: Message, path: str) -> bool:
        """Whether a request is for one of its files."""
        is_known = path in self._files or path in self._redirects
        return scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and is_known

    async def respond(self, scope: Message, path: str, send: Send) -> None:
        """Send the file at ``path``, one of ``paths``, or say that the client has it already."""
        if (location := self._redirects.get(path)) is not None:
            await _send(scope, send, 307, [(b"location", location)], b"")
            return
        file = self._files[path]
        given = [value for name, value in scope["headers"] if name == b"if-none-match"]
        is_known = any(file.etag in value for value in given)
        await _send(scope, send, 304 if is_known else 200, list(file.headers), b"" if is_known else file.data)


def playground_of(app: Any) -> Playground | None:
    """The playground beside ``app``, vLLM's application; None where ``--no-playground`` was given."""
    args = getattr(getattr(app, "state", None), "args", None)
    if args is None or getattr(args, "forkjoin_no_playground", False):
        return None
    is_taken = any(getattr(route, "path", None) in ("/", "") for route in getattr(app, "routes", ()))
    return Playground(leads_home=not is_taken)


async def _send(
    scope: Message, send: Send, status: int, headers: list[tuple[bytes, bytes]], data: bytes
) -> None:
    length = [] if status == 304 else [(b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length, *_HEADERS]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else data})


def _is_served(file: Path) -> bool:
    """Not the record of what the files were built from."""
    return file.is_file() and file.suffix in _TYPES


def _path(file: Path, folder: Path) -> str:
    name = file.relative_to(folder).as_posix()
    return _PAGE if name == _INDEX else _PAGE + name.removesuffix(".html")


def _read(file: Path) -> _File:
    data = file.read_bytes()
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'.encode()
    kind = _TYPES[file.suffix] + ("" if file.suffix == ".svg" else "; charset=utf-8")
    caching = _CHECKED if file.suffix == ".html" else _HASHED
    return _File(data, ((b"content-type", kind.encode()), (b"etag", etag), caching), etag)
