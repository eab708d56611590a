"""What tests of cancelled threads ask, and read while an answer is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.server.reading import extend
from tests.server.unhurried import taking

LIMIT_S = 300
#: An answer whose threads write until something ends them: for more than a minute on any machine.
ENDLESS = {
    "model": "abacus",
    "messages": [{"role": "user", "content": "a=1+1"}],
    "max_tokens": 3500,
    "ignore_eos": True,
    **taking(0.02),
    "forkjoin": {"branches": [{"title": title, "text": title} for title in "abc"]},
}
#: The same of a vote.
ENDLESS_VOTE = ENDLESS | {"forkjoin": {"best_of": 3, "vote": "no such text"}}


class Streamed:
    """A chat completion that is being made, as far as it was read."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        self.threads: dict[int, dict[str, Any]] = {}
        #: What each thread waits for, or did last.
        self.waits: dict[int, str] = {}
        self.finish_reason: str | None = None
        self.usage: Any = None

    def read_until(self, ready: Callable[[], bool]) -> None:
        """Read on until ``ready``, or the end."""
        while not ready() and (chunk := self._next()) is not None:
            self.usage = chunk.get("usage") or self.usage
            for choice in chunk["choices"]:
                self.finish_reason = choice["finish_reason"] or self.finish_reason
                for entry in choice["delta"].get("threads", ()):
                    extend(self.threads.setdefault(entry["index"], {"content": ""}), entry)
                    if "waits_for" in entry:
                        self.waits[entry["index"]] = entry["waits_for"]["type"]

    def read_to_end(self) -> None:
        self.read_until(lambda: False)

    def _next(self) -> dict[str, Any] | None:
        for line in self._lines:
            if line.startswith("data: {"):
                chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return chunk
        return None


@contextmanager
def streaming(address: str, body: dict[str, Any], key: str | None = None) -> Iterator[Streamed]:
    """The answer to ``body``, its threads shown."""
    asked = body | {"stream": True, "stream_options": {"include_usage": True, "include_threads": True}}
    url, headers = f"{address}/v1/chat/completions", headers_of(key)
    with httpx.stream("POST", url, json=asked, headers=headers, timeout=LIMIT_S) as response:
        assert response.status_code == 200, response.read()
        yield Streamed(response)


def cancel(address: str, thread_id: str, key: str | None = None) -> tuple[int, Any]:
    """The status of the answer, and its body. Each call has a connection of its own."""
    url = f"{address}/v1/forkjoin/threads/{thread_id}/cancel"
    answer = httpx.post(url, headers=headers_of(key), timeout=LIMIT_S)
    return answer.status_code, answer.json()


def headers_of(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}
