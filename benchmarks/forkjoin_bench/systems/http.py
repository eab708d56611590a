"""Asking a server over HTTP: for a whole answer, or as the engine of a client's loop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from forkjoin_bench.inputs.script import Compiled
from forkjoin_bench.systems.base import Answer
from forkjoin_bench.systems.server import Server

#: Greedy, and text that has every token in it.
PLAIN = {"temperature": 0.0, "add_special_tokens": False, "skip_special_tokens": False}


class Whole:
    """One streamed request: to a server that forks by itself, or to one that decodes sequentially."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.engine = server

    async def text_of(self, family: Compiled, answer: Answer) -> str:
        body = PLAIN | {
            "prompt": family.family.prompt,
            "max_tokens": len(family.token_ids) + 1,
            "seed": family.family.sample,
        }
        choice = await _streamed(self.engine, body, answer)
        return str(choice["text"])


class Samples:
    """One streamed request for all samples of a prompt: the API's ``n``."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.engine = server

    async def text_of(self, family: Compiled, answer: Answer) -> str:
        (text,) = await self.texts_of([family], [answer])
        return text

    async def texts_of(self, samples: Sequence[Compiled], answers: Sequence[Answer]) -> list[str]:
        body = PLAIN | {
            "prompt": samples[0].family.prompt,
            "max_tokens": max(len(sample.token_ids) for sample in samples) + 1,
            "n": len(answers),
            "seed": samples[0].family.sample,  # vLLM adds a choice's index to it
            "temperature": 1.0,  # vLLM refuses several greedy ones; the script leaves one token to sample
        }
        pieces: list[list[str]] = [[] for _ in answers]
        async for choice in self.engine.stream(body):
            answer = answers[choice["index"]]
            if choice["text"]:
                answer.arrivals.append(time.monotonic())
                pieces[choice["index"]].append(choice["text"])
            if choice["finish_reason"]:
                answer.ended = time.monotonic()
        return ["".join(of_answer) for of_answer in pieces]


class HttpCompleter:
    """Text in, text out."""

    def __init__(self, server: Server, token_ids: Mapping[str, int]) -> None:
        self.engine = server
        self._token_ids = token_ids

    def encode(self, text: str) -> str:
        return text

    def decode(self, text: str) -> str:
        return text

    async def complete(
        self, context: str, max_tokens: int, stops: Sequence[str], seed: int | None, answer: Answer | None
    ) -> str:
        tags = {self._token_ids[s]: s for s in stops}
        body: dict[str, Any] = PLAIN | {
            "prompt": context,
            "max_tokens": max_tokens,
            "stop_token_ids": list(tags),
            "seed": seed,
        }
        if answer is None:
            choice = await self.engine.complete(body)
        else:
            choice = await _streamed(self.engine, body, answer)
        return str(choice["text"]) + tags.get(choice["stop_reason"], "")


async def _streamed(server: Server, body: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The choice as it would be without streaming."""
    pieces, reason = [], None
    async for choice in server.stream(body):
        reason = choice.get("stop_reason", reason)
        if choice["text"]:
            answer.arrivals.append(time.monotonic())
            pieces.append(choice["text"])
    return {"text": "".join(pieces), "stop_reason": reason}
