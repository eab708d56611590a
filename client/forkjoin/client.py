"""The clients, one that waits and one for ``async``: they ask, ask again where that helps, or raise."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel

from forkjoin.answer import Answer
from forkjoin.asking import (
    CHAT,
    MODELS,
    SESSION,
    TIMEOUT,
    Messages,
    Server,
    cancel_path,
    chat_body,
    group_in,
    release_path,
    routing,
)
from forkjoin.errors import ForkJoinError, NotConnected, RequestRefused, Unreadable, refusal
from forkjoin.options import ForkJoin
from forkjoin.parsing import parsed
from forkjoin.retrying import RETRIES, Retries
from forkjoin.streams import AsyncEventStream, EventStream, read, read_async

#: Lost before an answer began. A server that only takes long is not asked again: it would have more to do.
_LOST = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.RemoteProtocolError,
)

#: A rollout asks for hundreds of answers at once; a process may have 256 files open (macOS) or 1,024.
_LIMITS = httpx.Limits(max_connections=200)

_T = TypeVar("_T")


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _Client:
    """What both have in common: where to ask, and what to do about an answer that is none."""

    def __init__(self, base_url: str | None, api_key: str | None, retries: Retries) -> None:
        self._server = Server.named(base_url, api_key)
        self._retries = retries

    @property
    def address(self) -> str:
        """Where it asks."""
        return self._server.address

    def _request(
        self,
        http: httpx.Client | httpx.AsyncClient,
        method: str,
        path: str,
        body: Any,
        group_id: str | None,
    ) -> httpx.Request:
        headers = self._server.headers
        if SESSION not in http.headers:  # of the user's own
            headers |= routing(group_in(body) if group_id is None else group_id)
        try:
            return http.build_request(method, self.address + path, json=body, headers=headers)
        except (ValueError, httpx.InvalidURL) as error:  # half of a surrogate pair, or NaN
            raise ForkJoinError(
                f"expected a request that can be sent, got one that can't: {error}: change the request"
            ) from error

    def _answer(self, response: httpx.Response) -> Answer:
        return self._read(response, Answer.of, "a chat completion")

    def _names(self, response: httpx.Response) -> list[str]:
        models = self._read(response, _Models.model_validate, "a list of models")
        return [model.id for model in models.data]

    def _read(self, response: httpx.Response, reader: Callable[[Any], _T], expected: str) -> _T:
        try:
            return reader(parsed(response.content))
        except ValueError as error:
            said = response.content[:100].decode(errors="replace")
            raise Unreadable(
                f"expected {expected} of {self.address}, got {said!r}: check the address"
            ) from error

    def _refused(self, response: httpx.Response) -> RequestRefused | None:
        if response.is_success:
            return None
        return refusal(response.status_code, response.headers, response.content, time.time())

    def _wait_s(self, error: Exception, num_retries: int) -> float:
        """How long to wait before the next attempt. Raises what ``error`` means if there is none."""
        status = error.status if isinstance(error, RequestRefused) else None
        asked_s = error.retry_after_s if isinstance(error, RequestRefused) else None
        is_lost = isinstance(error, _LOST)
        if is_lost or status is not None:
            wait_s = self._retries.wait_s(num_retries, status, asked_s, random.random())
            if wait_s is not None:
                return wait_s
        if isinstance(error, RequestRefused):
            raise error
        if isinstance(error, httpx.DecodingError):
            raise Unreadable(
                f"expected an answer of {self.address}, got one that can't be decompressed ({error}): "
                "check the address, and the proxies before it"
            ) from error
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        raise NotConnected(
            f"expected an answer of {self.address}, got {said}: check the address, and that the server runs"
        ) from error


class Client(_Client):
    """Asks a server. One object may be used by many threads.

    Args:
        base_url: the server's address; else FORKJOIN_CLIENT_URL, else http://localhost:8000.
        api_key: else FORKJOIN_CLIENT_API_KEY.
        timeout: in seconds, or as httpx takes it.
        retries: how often to ask again. Never once a stream has begun.
        http: a client of httpx's to ask through, with a proxy or certificates of its own. It stays open.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout = TIMEOUT,
        retries: Retries = RETRIES,
        http: httpx.Client | None = None,
    ) -> None:
        super().__init__(base_url, api_key, retries)
        self._owns = http is None
        self._http = http or httpx.Client(timeout=timeout, limits=_LIMITS)

    def stream(self, messages: Messages, *, forkjoin: ForkJoin | None = None, **body: Any) -> EventStream:
        """Ask ``messages`` and get the answer's events; use it in ``with``.

        ``body`` is what a chat completion takes: ``model``, ``temperature``, ``max_tokens`` and the like.
        """
        asked = chat_body(messages, forkjoin, body, is_stream=True)
        response = self._send("POST", CHAT, asked, is_stream=True)
        return EventStream(read(response), response)

    def ask(self, messages: Messages, *, forkjoin: ForkJoin | None = None, **body: Any) -> Answer:
        """Ask ``messages`` and get the whole answer at once."""
        asked = chat_body(messages, forkjoin, body, is_stream=False)
        return self._answer(self._send("POST", CHAT, asked))

    def cancel_thread(self, thread_id: str, *, group_id: str | None = None) -> None:
        """End one thread of an answer that is being made, with the threads that it has forked.

        From any Python thread; the others go on, and the stream of the answer tells of the end. Behind a
        router, ``group_id`` is that of the answer. Raises Conflict if it has ended already, BadRequest if the
        server knows no such thread.
        """
        self._send("POST", cancel_path(thread_id), group_id=group_id)

    def release(self, answer_id: str, *, group_id: str | None = None) -> None:
        """End the lease of an answer that ``keep`` keeps. Raises BadRequest if none is kept by that id.

        Behind a router, ``group_id`` is that of the answer.
        """
        self._send("POST", release_path(answer_id), group_id=group_id)

    def models(self) -> list[str]:
        """The names of the models served."""
        return self._names(self._send("GET", MODELS))

    def get(self, path: str) -> httpx.Response:
        """What the server has at ``path``, with the retries and errors of all requests."""
        return self._send("GET", path)

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        group_id: str | None = None,
        is_stream: bool = False,
    ) -> httpx.Response:
        num_retries = 0
        while True:
            request = self._request(self._http, method, path, body, group_id)
            error: Exception | None
            try:
                response = self._http.send(request, stream=is_stream)
                if not response.is_success:
                    response.read()
                error = self._refused(response)
            except httpx.RequestError as lost:
                error = lost
            if error is None:
                return response
            time.sleep(self._wait_s(error, num_retries))
            num_retries += 1

    def close(self) -> None:
        """Close the connections."""
        if self._owns:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Client):
    """The same for ``async``, on asyncio. Arguments as of ``Client``."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout = TIMEOUT,
        retries: Retries = RETRIES,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(base_url, api_key, retries)
        self._owns = http is None
        self._http = http or httpx.AsyncClient(timeout=timeout, limits=_LIMITS)

    async def stream(
        self, messages: Messages, *, forkjoin: ForkJoin | None = None, **body: Any
    ) -> AsyncEventStream:
        """Ask ``messages`` and get the answer's events: ``async with await client.stream(…) as events``."""
        asked = chat_body(messages, forkjoin, body, is_stream=True)
        response = await self._send("POST", CHAT, asked, is_stream=True)
        return AsyncEventStream(read_async(response), response.aclose)

    async def ask(self, messages: Messages, *, forkjoin: ForkJoin | None = None, **body: Any) -> Answer:
        """Ask ``messages`` and get the whole answer at once."""
        asked = chat_body(messages, forkjoin, body, is_stream=False)
        return self._answer(await self._send("POST", CHAT, asked))

    async def cancel_thread(self, thread_id: str, *, group_id: str | None = None) -> None:
        """End one thread of an answer that is being made, with the threads that it has forked.

        The others go on, and the stream of the answer tells of the end. Behind a router, ``group_id`` is that
        of the answer. Raises Conflict if it has ended already, BadRequest if the server knows no such thread.
        """
        await self._send("POST", cancel_path(thread_id), group_id=group_id)

    async def release(self, answer_id: str, *, group_id: str | None = None) -> None:
        """End the lease of an answer that ``keep`` keeps. Raises BadRequest if none is kept by that id.

        Behind a router, ``group_id`` is that of the answer.
        """
        await self._send("POST", release_path(answer_id), group_id=group_id)

    async def models(self) -> list[str]:
        """The names of the models served."""
        return self._names(await self._send("GET", MODELS))

    async def get(self, path: str) -> httpx.Response:
        """What the server has at ``path``, with the retries and errors of all requests."""
        return await self._send("GET", path)

    async def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        group_id: str | None = None,
        is_stream: bool = False,
    ) -> httpx.Response:
        num_retries = 0
        while True:
            request = self._request(self._http, method, path, body, group_id)
            error: Exception | None
            try:
                response = await self._http.send(request, stream=is_stream)
                if not response.is_success:
                    await response.aread()
                error = self._refused(response)
            except httpx.RequestError as lost:
                error = lost
            if error is None:
                return response
            await asyncio.sleep(self._wait_s(error, num_retries))
            num_retries += 1

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owns:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
