"""Our Python client, and an OpenAI client's stream that it reads, on the real server."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from forkjoin import (
    AnswerDelta,
    AsyncClient,
    BadRequest,
    Client,
    Conflict,
    Finished,
    Forked,
    Joined,
    ThreadDelta,
    ThreadEnded,
    async_events_of,
    events_of,
)
from forkjoin.saved import read_saved
from forkjoin.step_lanes import lanes_in_steps
from tests.server.asking import chat, worksheet
from tests.server.cancelling import ENDLESS
from tests.server.reading import wait_until_idle, without_ids
from tests.server.unhurried import taking

pytestmark = pytest.mark.server

NUM_THREADS = 3
ASK = chat(worksheet(NUM_THREADS))
STREAM = {"stream": True, "stream_options": {"include_threads": True, "include_usage": True}}
GUIDE = Path(__file__).parents[2] / "docs" / "python-client.md"


@pytest.fixture(scope="module")
def ours(server):
    with Client(server) as client:
        yield client


@pytest.fixture(scope="module")
def whole(ours):
    """The answer, not streamed."""
    return ours.ask(**ASK)


def _same(answer, whole):
    """All but the ids."""
    seen, expected = (a.model_dump(exclude={"id", "threads"}, exclude_none=True) for a in (answer, whole))
    threads, expected_threads = (
        [t.model_dump(exclude_unset=True) for t in a.threads] for a in (answer, whole)
    )
    return (seen, without_ids(threads)) == (expected, without_ids(expected_threads))


def test_a_stream_forks_writes_side_by_side_joins_and_ends_as_the_whole_answer(ours, whole):
    with ours.stream(**ASK, **taking(0.002)) as stream:
        events = list(stream)
    assert [type(e) for e in events if isinstance(e, Forked | ThreadEnded | Joined | Finished)] == [
        Forked,
        *[ThreadEnded] * NUM_THREADS,
        Joined,
        Finished,
    ]
    first_end = next(i for i, e in enumerate(events) if isinstance(e, ThreadEnded))
    writing = {e.index for e in events[:first_end] if isinstance(e, ThreadDelta)}
    assert writing == set(range(NUM_THREADS))
    assert len(whole.threads) == NUM_THREADS
    assert whole.usage.forkjoin.critical_path_tokens < whole.usage.forkjoin.total_tokens
    assert _same(stream.answer, whole)


def test_an_openai_clients_stream_is_read_alike(client, whole):
    with events_of(client.chat.completions.create(**ASK, **STREAM)) as stream:
        assert isinstance(list(stream)[-1], Finished)
    assert _same(stream.answer, whole)


def test_both_async_ways_read_alike(server, whole):
    from openai import AsyncOpenAI

    async def run():
        async with AsyncClient(server) as client, await client.stream(**ASK) as stream:
            async for _ in stream:
                pass
        async with AsyncOpenAI(base_url=f"{server}/v1", api_key="none") as openai:
            theirs = await openai.chat.completions.create(**ASK, **STREAM)
            async with async_events_of(theirs) as wrapped:
                async for _ in wrapped:
                    pass
        return stream.answer, wrapped.answer

    assert all(_same(answer, whole) for answer in asyncio.run(run()))


def test_a_stream_that_is_left_leaves_nothing_behind_on_the_server(server, ours):
    with ours.stream(**ASK) as stream:
        next(event for event in stream if isinstance(event, Forked))
    assert stream.answer.finish_reason is None
    wait_until_idle(server, lambda: ours.ask("a=1*2", max_tokens=1))


def test_a_thread_is_cancelled_while_the_others_go_on(ours):
    with ours.stream(**ENDLESS) as events:
        for event in events:
            if isinstance(event, Forked):
                first, *others = event.threads
                ours.cancel_thread(first.id)
            if isinstance(event, ThreadEnded) and event.index == first.index:
                assert event.finish_reason == "cancelled"
                with pytest.raises(Conflict, match="has ended already: cancelled"):
                    ours.cancel_thread(first.id)
                for thread in others:
                    ours.cancel_thread(thread.id)
    assert {thread.finish_reason for thread in events.answer.threads} == {"cancelled"}
    with pytest.raises(BadRequest, match="no running answer of this API key has"):
        ours.cancel_thread(first.id)


def test_the_threads_of_a_vote_write_side_by_side_and_its_winner_is_told_at_the_end(ours):
    with ours.stream(
        **ASK | {"max_tokens": 40, "forkjoin": {"best_of": 3, "vote": "no such text"}}
    ) as stream:
        events = list(stream)
    told = [type(e) for e in events if isinstance(e, Forked | AnswerDelta | ThreadEnded | Finished)]
    assert (told[0], told[-2:]) == (Forked, [AnswerDelta, Finished])
    assert {e.index for e in events if isinstance(e, ThreadDelta)} == {0, 1, 2}
    winner = stream.answer.threads[stream.answer.usage.forkjoin.vote.index]
    assert stream.answer.content
    assert stream.answer.content in winner.content


def test_the_async_client_cancels_a_thread_too(server):
    async def ends():
        async with AsyncClient(server) as client, await client.stream(**ENDLESS) as events:
            async for event in events:
                if isinstance(event, Forked):
                    for thread in event.threads:
                        await client.cancel_thread(thread.id)
        return [thread.finish_reason for thread in events.answer.threads]

    assert asyncio.run(ends()) == ["cancelled"] * 3


def test_a_wrong_option_is_refused_by_the_servers_sentence(ours):
    with pytest.raises(BadRequest, match=r"max_forks.*change the request") as caught:
        ours.ask("a=1*2", forkjoin={"max_forks": -1})
    assert caught.value.status == 400


def test_the_programs_of_the_guide_run(server, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # one writes a file
    programs = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.S)
    assert len(programs) == 6
    for program in programs:
        names = {"__name__": "__main__"}
        exec(program.replace("http://localhost:8000", server), names)
        if "OpenAI" in names:  # a program's end would
            names["client"].close()
    said = capsys.readouterr().out
    assert "forks: ['a=482*731', 'c=9047*36']" in said
    assert "joins [0, 1]" in said
    assert said.count("total ends in 0") == 4


# ---- the terminal ---------------------------------------------------------------------------

PROMPT = ASK["messages"][0]["content"]


def _command(*argv):
    return [sys.executable, "-m", "forkjoin_server.cli", *argv]


def test_chat_writes_the_transcript_into_a_pipe(server, whole):
    done = subprocess.run(
        _command("chat", server, "--temperature", "0"),
        input=PROMPT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stdout, done.stderr, done.returncode) == (whole.content + "\n", "", 0)


def test_chat_shows_the_lanes_in_a_terminal(server):
    ours, its = pty.openpty()
    command = _command("chat", server, "--temperature", "0", "--ask", PROMPT)
    env = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=env) as process:
        os.close(its)
        shown = _read_all(ours)
    os.close(ours)
    assert process.returncode == 0
    for problem in worksheet(NUM_THREADS).long_problems:
        assert problem.text in shown
    assert shown.count("┫") >= NUM_THREADS
    assert f"{NUM_THREADS} threads · " in shown


def test_top_finds_all_that_it_shows(server):
    done = subprocess.run(
        _command("top", server, "--interval", "0.1"), capture_output=True, text=True, timeout=300, check=True
    )
    number = r"[\d,.]+"
    assert re.fullmatch(
        rf"running {number} · threads {number} · waiting {number} requests {number} threads · KV {number}% · "
        rf"{number} tokens/s · {number} forks/s · {number} joins/s\n",
        done.stdout,
    )


def test_the_figure_of_the_readme_shows_its_answer(ours):
    lanes = lanes_in_steps(ours.ask("a=482*731, b=7*8, c=9047*36", temperature=0))
    names = [lane.title for lane in lanes.in_order()]
    tokens = [f"{lane.num_tokens} tokens" for lane in lanes.in_order()]
    for figure in ("fork-join.svg", "fork-join-dark.svg"):
        texts = re.findall(r">([^<>]+)</text>", (GUIDE.parent / figure).read_text())
        assert [text for text in texts if text in names] == names
        assert [text for text in texts if text.endswith("tokens")] == tokens


def test_each_shape_of_an_answer_has_the_same_lanes(server, whole):
    """A chat completion, a stream as it came, a response: all end with the critical path."""
    shown = {"forkjoin": {"include_threads": True}}
    bodies = {
        "/v1/chat/completions": [ASK | shown, ASK | shown | STREAM],
        "/v1/responses": [{"input": PROMPT, "temperature": 0, "max_output_tokens": 3000} | shown],
    }
    texts = [
        httpx.post(server + path, json=body, timeout=300).text
        for path, asked in bodies.items()
        for body in asked
    ]
    for saved in map(read_saved, texts):
        assert saved.lanes.answer.end == whole.usage.forkjoin.critical_path_tokens
        assert [saved.lanes[i].num_tokens for i in range(NUM_THREADS)] == [
            thread.usage.completion_tokens for thread in whole.threads
        ]
        (split,) = saved.lanes.answer.splits
        assert split.threads == list(range(NUM_THREADS))


def _read_all(terminal):
    shown = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # how Linux says that nobody writes to a terminal any more
            more = b""
        if not more:
            return shown.decode(errors="replace")
        shown += more
