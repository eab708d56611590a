"""What tests ask a server for: a worksheet that the embedded model forks over."""

from __future__ import annotations

import asyncio
import random
from typing import Any, NamedTuple

import httpx

from training.prompts import make_worksheet
from training.task import Worksheet

#: What an answer may take on a busy machine, among as many as a test asks for.
LIMIT_S = 900


class Told(NamedTuple):
    """What an answer says: its text, and of each thread its title and text."""

    text: str
    threads: list[tuple[str, str]]


def worksheet(num_threads: int, seed: int = 5) -> Worksheet:
    """One whose answer has so many threads, and a problem that needs none."""
    return make_worksheet(random.Random(seed), num_long=num_threads, num_short=1, held_out=True)


def chat(sheet: Worksheet) -> dict[str, Any]:
    """The body of a chat completion over ``sheet``."""
    return {
        "model": "abacus",
        "temperature": 0,
        "messages": [{"role": "user", "content": sheet.prompt}],
        "max_tokens": 3000,
    }


def ask(address: str, sheet: Worksheet, **fields: Any) -> Told:
    """The answer to ``sheet``, asked for alone. ``fields``: of the body, beside its own."""
    return asyncio.run(_ask(address, sheet, fields))


def ask_together(address: str, sheets: list[Worksheet], **fields: Any) -> list[Told]:
    """The answers to all ``sheets``, asked for at once."""

    async def all_of_them() -> list[Told]:
        return list(await asyncio.gather(*(_ask(address, sheet, fields) for sheet in sheets)))

    return asyncio.run(all_of_them())


async def _ask(address: str, sheet: Worksheet, fields: dict[str, Any]) -> Told:
    # over a connection of its own, which may lead to any of several API servers
    body = chat(sheet) | {"forkjoin": {"include_threads": True}} | fields
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        response = await client.post(f"{address}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    message = response.json()["choices"][0]["message"]
    return Told(message["content"], [(t["title"], t["content"]) for t in message["threads"]])
