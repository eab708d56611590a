"""What both clients ask by: their settings, and the requests that they make. No I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from forkjoin.errors import ForkJoinError
from forkjoin.options import ForkJoin
from forkjoin.tree.tree import Tree

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
#: By it routers choose a replica.
SESSION = "x-session-id"
ADDRESS = "http://localhost:8000"
#: The variables that stand in for arguments.
URL_VARIABLE, KEY_VARIABLE = "FORKJOIN_CLIENT_URL", "FORKJOIN_CLIENT_API_KEY"
#: No answer begins while its request waits for room, and no byte comes while a join is computed.
TIMEOUT = httpx.Timeout(600, connect=10, pool=None)

Messages = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Server:
    """Where to ask, and with which key."""

    address: str
    api_key: str | None

    @classmethod
    def named(cls, base_url: str | None, api_key: str | None) -> Server:
        """The server of the arguments, else of the environment. ``/v1`` at the end of the address may stay.

        Raises ForkJoinError for an address that is no http URL, and for a key that no header can hold.
        """
        address = base_url or os.environ.get(URL_VARIABLE) or ADDRESS
        try:
            url = httpx.URL(address)
            is_http = url.scheme in ("http", "https") and bool(url.host)
        except (httpx.InvalidURL, UnicodeError):
            is_http = False
        if not is_http:
            raise ForkJoinError(f"base_url: expected http://host:port or https://host, got {address!r}")
        key = api_key or os.environ.get(KEY_VARIABLE) or ""
        if not (key.isascii() and key.isprintable() and key == key.strip()):
            raise ForkJoinError(
                "api_key: expected printable ASCII without spaces around it, got something else: "
                f"check the argument, or {KEY_VARIABLE}"
            )
        return cls(address.rstrip("/").removesuffix("/v1"), key or None)

    @property
    def headers(self) -> dict[str, str]:
        """What each request says beside its body."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}


def group_in(body: Any) -> Any:
    """The group that a body names, whatever stands there; None: none."""
    asked = body.get("forkjoin") if isinstance(body, dict) else None
    return asked.get("group_id") if isinstance(asked, dict) else None


def routing(group_id: Any) -> dict[str, str]:
    """The header by which routers keep all requests of a group on one replica.

    An id that no header can hold has none: what is wrong with it is the server's to say.
    """
    if not isinstance(group_id, str):
        return {}
    try:
        return {SESSION: quote(group_id, safe="")}
    except UnicodeEncodeError:  # half of a surrogate pair
        return {}


def cancel_path(thread_id: str) -> str:
    """Where to ask for the end of a thread."""
    return f"/v1/forkjoin/threads/{quote(thread_id, safe='')}/cancel"


def release_path(answer_id: str) -> str:
    """Where to ask for the end of a kept answer's lease."""
    return f"/v1/forkjoin/kept/{quote(answer_id, safe='')}/release"


def chat_body(
    messages: Messages, forkjoin: ForkJoin | None, more: Mapping[str, Any], *, is_stream: bool
) -> dict[str, Any]:
    """The body of a chat completion whose threads are shown. A text is one message of the user's."""
    asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    options: dict[str, Any] = {"include_threads": True, **(forkjoin or {})}
    if isinstance(tree := options.get("continues_tree"), Tree):
        options["continues_tree"] = tree.to_dict()
    body = {**more, "messages": asked, "forkjoin": options}
    if is_stream:
        stream_options = {"include_usage": True, **(more.get("stream_options") or {})}
        body |= {"stream": True, "stream_options": stream_options}
    return body
