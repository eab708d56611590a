"""Two servers behind PyPI's vllm-router: they keep answers; one is killed in the middle of its work, the other drained.

A session (``X-Session-ID``) stays on one server, so it is known who answers whom.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from tests.server.asking import chat, worksheet
from tests.server.reading import assert_the_same
from tests.server.replicas import (
    NUM_SUB_AGENTS,
    Client,
    Counts,
    SubAgents,
    Told,
    ask_sub_agents,
    held_open,
    start_replica,
    start_router,
    until_all_are_there,
)
from tests.server.turnstile import LIMIT_S, Turnstile

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

NUM_THREADS = 6
SHEET = worksheet(NUM_THREADS)
ASK = chat(SHEET)
#: So many sessions of each server, each with a request that streams and one that does not.
NUM_SESSIONS = 2
FORKS = "forkjoin:forks_total"
ENDED = "vllm:request_success_total"
#: What a server counts, and how the same follows from what its clients were told.
COUNTED = {
    ENDED: lambda told: len(told),
    FORKS: lambda told: len(told),
    "forkjoin:joins_total": lambda told: len(told),
    "forkjoin:threads_started_total": lambda told: sum(len(t.answer.threads) for t in told),
    "forkjoin:threads_ended_total": lambda told: sum(t.answer.usage.forkjoin["num_threads"] for t in told),
    "forkjoin:generated_tokens_total": lambda told: sum(t.answer.usage.completion_tokens for t in told),
    "forkjoin:critical_path_tokens_total": lambda told: sum(
        t.answer.usage.forkjoin["critical_path_tokens"] for t in told
    ),
}


@dataclass
class Incident:
    """All that clients were told, and what the servers counted."""

    #: Before anything happened, streamed and not.
    undisturbed: list[Told]
    #: That went on from an answer which their session's server keeps.
    sub_agents: SubAgents
    #: Of the server that was killed while they ran, and of the other one beside it.
    of_killed: list[Told]
    of_survivor: list[Told]
    counted: dict[str, float]
    #: In flight at the survivor when its drain began, and new ones from then on.
    of_drained: list[Told]
    refused: list[Told]
    refused_directly: httpx.Response
    counted_in_drain: dict[str, float]
    exit_code: int
    #: When no server was left.
    of_nobody: list[Told]


@pytest.fixture(scope="module")
def incident(tmp_path_factory):
    return asyncio.run(_incident(tmp_path_factory.mktemp("replicas")))


async def _incident(folder: Path) -> Incident:
    with contextlib.ExitStack() as stack:
        of_doomed, of_survivor = [Turnstile(folder / f"{name}-steps") for name in ("doomed", "survivor")]
        with ThreadPoolExecutor() as side_by_side:
            starting = [
                start_replica(folder / "doomed", 0, of_doomed),
                start_replica(folder / "survivor", 1, of_survivor),
            ]
            started = side_by_side.map(stack.enter_context, starting)
        (doomed, doomed_process), (survivor, survivor_process) = started
        router = stack.enter_context(start_router(folder / "router", doomed, survivor))
        sessions = _sessions(router, doomed, survivor)
        undisturbed = await _told(_started(_clients(router, sessions[survivor][:1])))
        sub_agents = await ask_sub_agents(router, home=sessions[survivor][0], other=sessions[doomed][0])

        counts = {server: Counts(server) for server in sessions}
        clients = {server: _clients(router, sessions[server]) for server in sessions}
        with of_doomed, of_survivor:
            _started([c for server in sessions for c in clients[server]])
            for server in sessions:
                await until_all_are_there(server, len(clients[server]))
            await of_doomed.until(lambda: _all_fork(clients[doomed], counts[doomed]))
            await of_survivor.until(lambda: _all_fork(clients[survivor], counts[survivor]))
            os.killpg(doomed_process.pid, signal.SIGKILL)
            doomed_process.wait(timeout=LIMIT_S)
        by_killed, by_survivor = [await _told(clients[server]) for server in (doomed, survivor)]
        answered = [t for t in by_killed + by_survivor if t.error is None]
        counted = _counted(counts[survivor], answered)

        counts_in_drain = Counts(survivor)
        with held_open(survivor):
            with of_survivor:
                drained = _started(_clients(router, sessions[survivor]))
                await until_all_are_there(survivor, len(drained))
                await of_survivor.until(lambda: _all_fork(drained, counts_in_drain))
                survivor_process.send_signal(signal.SIGTERM)
                _wait_until_it_drains(survivor)
                refused_directly = httpx.post(f"{survivor}/v1/chat/completions", json=ASK, timeout=LIMIT_S)
                refused = await _told(_started(_clients(router, sessions[survivor])))
            of_drained = await _told(drained)
            counted_in_drain = _counted(counts_in_drain, [t for t in of_drained if t.error is None])
        exit_code = survivor_process.wait(timeout=LIMIT_S)
        of_nobody = await _told(_started(_clients(router, sessions[survivor])))
    return Incident(
        undisturbed,
        sub_agents,
        by_killed,
        by_survivor,
        counted,
        of_drained,
        refused,
        refused_directly,
        counted_in_drain,
        exit_code,
        of_nobody,
    )


def _clients(router: str, sessions: list[str]) -> list[Client]:
    """Two of each session: one streams, one does not."""
    return [
        Client(router, ASK, session, streams=streams) for session in sessions for streams in (True, False)
    ]


def _started(clients: list[Client]) -> list[Client]:
    for client in clients:
        client.start()
    return clients


async def _told(clients: list[Client]) -> list[Told]:
    return [await client.result() for client in clients]


def _sessions(router: str, *servers: str) -> dict[str, list[str]]:
    """``NUM_SESSIONS`` session ids of each server, by trying."""
    sessions: dict[str, list[str]] = {server: [] for server in servers}
    for number in range(64):
        if all(len(found) == NUM_SESSIONS for found in sessions.values()):
            break
        counts = {server: Counts(server) for server in servers}
        httpx.post(
            f"{router}/v1/completions",
            json={"model": "abacus", "prompt": "x", "max_tokens": 1},
            headers={"X-Session-ID": f"session-{number}"},
            timeout=LIMIT_S,
        ).raise_for_status()
        (server,) = (server for server in servers if counts[server](ENDED) == [1])
        if len(sessions[server]) < NUM_SESSIONS:
            sessions[server].append(f"session-{number}")
    return sessions


def _all_fork(clients: list[Client], counts: Counts) -> bool:
    """Whether the server has made the fork of each, and the streams have shown it. None may be over yet."""
    num_forks, num_ended = counts(FORKS, ENDED)
    over = [c.told for c in clients if c.is_over]
    assert (num_ended, over) == (0, []), "over before all forked"
    return num_forks == len(clients) and all(c.sees_threads for c in clients if c.told.streams)


def _wait_until_it_drains(server: str) -> None:
    end = time.monotonic() + LIMIT_S
    while httpx.get(f"{server}/ready", timeout=LIMIT_S).status_code == 200:
        assert time.monotonic() < end


def _counted(counts: Counts, told: list[Told]) -> dict[str, float]:
    """What the server has counted, once that is what the clients were told, or when the time is up."""
    end = time.monotonic() + LIMIT_S
    while True:
        counted = dict(zip(COUNTED, counts(*COUNTED), strict=True))
        if counted == _expected(told) or time.monotonic() > end:
            return counted
        time.sleep(0.2)


def _expected(told: list[Told]) -> dict[str, float]:
    return {name: count(told) for name, count in COUNTED.items()}


def _assert_answered(told: list[Told], incident: Incident) -> None:
    assert told
    for one in told:
        assert one.error is None
        assert_the_same(one.answer, incident.undisturbed[0].answer)


def test_a_stream_through_the_router_says_what_a_whole_answer_says(incident):
    _assert_answered(incident.undisturbed, incident)
    answer = incident.undisturbed[0].answer
    assert [t["title"] for t in answer.threads] == [p.text for p in SHEET.long_problems]
    assert (answer.finish_reason, answer.usage.forkjoin["num_threads"]) == ("stop", NUM_THREADS)


def test_sub_agents_of_a_session_go_on_from_the_answer_that_its_server_keeps(incident):
    agents = incident.sub_agents
    assert agents.kept["refused"] is None
    assert agents.kept["tokens"] > 0
    assert agents.of_session == ["kept"] * NUM_SUB_AGENTS
    # More where two end on the same block: then the later one finds that of the first.
    assert all(cached >= agents.kept["tokens"] for cached in agents.cached_tokens_of_session)
    assert (agents.of_other_session, agents.released) == (None, 200)


def test_the_other_server_answers_as_if_nothing_had_happened(incident):
    assert len(incident.of_survivor) == 2 * NUM_SESSIONS
    _assert_answered(incident.of_survivor, incident)


def test_a_stream_of_the_killed_server_breaks_with_an_error_and_is_never_taken_for_whole(incident):
    broken = [t for t in incident.of_killed if t.streams]
    assert len(broken) == NUM_SESSIONS
    for told in broken:
        assert isinstance(told.error, openai.APIConnectionError)
        assert "peer closed connection" in str(told.error.__cause__)
        assert told.answer.finish_reason is told.answer.usage is None
        assert told.answer.content
        assert incident.undisturbed[0].answer.content.startswith(told.answer.content)


def test_what_the_killed_server_had_not_begun_to_answer_the_router_asks_of_the_other(incident):
    _assert_answered([t for t in incident.of_killed if not t.streams], incident)


def test_the_survivor_counts_what_the_clients_were_told(incident):
    told = [t for t in incident.of_killed + incident.of_survivor if t.error is None]
    assert len(told) == 3 * NUM_SESSIONS
    assert incident.counted == _expected(told)


def test_a_drain_answers_all_that_is_in_flight_and_counts_it(incident):
    _assert_answered(incident.of_drained, incident)
    assert incident.counted_in_drain == _expected(incident.of_drained)
    assert incident.exit_code == 0


def test_a_draining_server_says_so_and_when_to_come_again(incident):
    answer = incident.refused_directly
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "shutting down" in answer.json()["error"]["message"]


@pytest.mark.parametrize("when", ["refused", "of_nobody"])
def test_without_a_server_that_takes_requests_each_is_a_503_with_a_reason(incident, when):
    assert len(getattr(incident, when)) == 2 * NUM_SESSIONS
    for told in getattr(incident, when):
        assert isinstance(told.error, openai.InternalServerError)
        assert told.error.status_code == 503
        assert re.search("shutting down|No available workers", told.error.response.text)
