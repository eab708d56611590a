"""One model over several processes: data-parallel engines behind two API servers."""

from __future__ import annotations

import asyncio
import random
import re

import httpx
import pytest

from tests.server.asking import chat
from tests.server.conftest import start_server
from tests.server.reading import by_engine
from training.prompts import make_worksheet
from training.task import Worksheet

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

LIMIT_S = 900
NUM_THREADS = 3
#: So many different worksheets, each asked so many times at once.
NUM_SHEETS, NUM_TIMES = 5, 4
NUM_ANSWERS = NUM_SHEETS * (1 + NUM_TIMES)

DATA_PARALLEL = ("--data-parallel-size", "2", "--api-server-count", "2")


def _sheets() -> list[Worksheet]:
    return [
        make_worksheet(random.Random(seed), num_long=NUM_THREADS, num_short=1, held_out=True)
        for seed in range(NUM_SHEETS)
    ]


async def _ask(address: str, sheet: Worksheet) -> tuple[str, list[tuple[str, str]]]:
    """The text of an answer, and of each thread its title and text; over a connection of its own."""
    body = chat(sheet) | {"forkjoin": {"include_threads": True}}
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        response = await client.post(f"{address}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    message = response.json()["choices"][0]["message"]
    return message["content"], [(t["title"], t["content"]) for t in message["threads"]]


def _answers_alone_and_together(address: str) -> None:
    """Each answer has its own threads, and is the same alone as among many."""

    async def ask_all(sheets: list[Worksheet]) -> list[tuple[str, list[tuple[str, str]]]]:
        return list(await asyncio.gather(*(_ask(address, sheet) for sheet in sheets)))

    sheets = _sheets()
    alone = [asyncio.run(_ask(address, sheet)) for sheet in sheets]
    for sheet, (text, threads) in zip(sheets, alone, strict=True):
        assert [title for title, _ in threads] == [p.text for p in sheet.long_problems]
        assert all(content in text for _, content in threads)
    assert asyncio.run(ask_all(sheets * NUM_TIMES)) == alone * NUM_TIMES


def test_twenty_families_on_two_engines_stay_whole_and_reach_their_own_clients(tmp_path):
    log = tmp_path / "log"
    with start_server(log, "--dtype", "float32", *DATA_PARALLEL) as (address, _):
        _answers_alone_and_together(address)
        forks, threads = (
            by_engine(address, f"forkjoin:{name}_total") for name in ("forks", "threads_started")
        )
    assert forks.keys() == {"0", "1"}
    assert all(forks.values()), f"an engine had no request: {forks}"
    assert sum(forks.values()) == NUM_ANSWERS
    assert threads == {engine: NUM_THREADS * num for engine, num in forks.items()}
    ended = re.findall(r"^\((ApiServer_\d) .* the request ended: ", log.read_text(), flags=re.M)
    assert len(ended) == NUM_ANSWERS
    assert set(ended) == {"ApiServer_0", "ApiServer_1"}, "an API server had no request"
