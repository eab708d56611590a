"""Requests that share a prompt run on one of several engines, whichever API server takes them."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest

from forkjoin_server.request.placement import engine_of
from tests.server.asking import chat, worksheet
from tests.server.conftest import start_server
from tests.server.reading import by_engine, metrics

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

LIMIT_S = 600
NUM_ENGINES, NUM_SAMPLES = 2, 6
FLAGS = ("--data-parallel-size", f"{NUM_ENGINES}", "--api-server-count", "2")
CONTEXT = "a=482*731, b=9047*36, " * 20
#: One that stands for each engine.
GROUPS = {engine_of(name, NUM_ENGINES): name for name in (f"group {n}" for n in range(32))}
ENDED = "vllm:request_success_total"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = (*FLAGS, "--enable-prompt-tokens-details")
    with start_server(tmp_path_factory.mktemp("groups") / "log", *flags) as (address, _):
        yield address


def ask(server, path, *bodies):
    """The answers to all ``bodies`` at once, each over a connection of its own: any API server may take it."""

    async def one(body):
        async with httpx.AsyncClient(timeout=LIMIT_S) as http:
            answer = await http.post(f"{server}{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def together():
        return await asyncio.gather(*map(one, bodies))

    return asyncio.run(together())


def completion(prompt, **forkjoin):
    return {"model": "abacus", "prompt": prompt, "max_tokens": 8, "forkjoin": {"enabled": False, **forkjoin}}


def ended(server):
    return Counter({int(engine): num for engine, num in by_engine(server, ENDED).items()})


@pytest.mark.parametrize("num_choices", [1, 3])
def test_forking_samples_of_a_group_run_on_the_engine_that_its_name_stands_for(server, num_choices):
    ask_forks = chat(worksheet(2)) | {"temperature": 1, "n": num_choices}
    assert GROUPS.keys() == set(range(NUM_ENGINES))
    for home, group_id in GROUPS.items():
        before = ended(server)
        answers = ask(
            server, "/v1/chat/completions", *[ask_forks | {"forkjoin": {"group_id": group_id}}] * NUM_SAMPLES
        )
        assert all(len(answer["choices"]) == num_choices for answer in answers)
        assert ended(server) - before == Counter({home: NUM_SAMPLES * num_choices})


@pytest.mark.parametrize("number", range(4))
def test_sub_agents_find_the_answer_that_one_of_the_engines_keeps(server, number):
    context = f"{number}: {CONTEXT}"
    before = metrics(server)["forkjoin:internal_errors_total"]
    (kept,) = ask(server, "/v1/completions", completion(context, keep=600))
    assert kept["usage"]["forkjoin"]["kept"]["refused"] is None
    prompts = [f"{context}{kept['choices'][0]['text']}c={digit}*8" for digit in range(NUM_SAMPLES)]
    goes_on = [completion(prompt, continues=kept["id"]) for prompt in prompts]
    answers = ask(server, "/v1/completions", *goes_on, completion(prompts[0], continues=kept["id"], keep=600))
    for answer in answers:
        assert answer["usage"]["forkjoin"]["continued"] == "kept"
        shared = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert shared >= kept["usage"]["forkjoin"]["kept"]["tokens"] > 0
    (further,) = ask(server, "/v1/completions", completion(f"{prompts[0]}, d=7", continues=answers[-1]["id"]))
    assert further["usage"]["forkjoin"]["continued"] == "kept"
    for answer in (kept, answers[-1]):
        path = f"{server}/v1/forkjoin/kept/{answer['id']}/release"
        assert httpx.post(path, timeout=LIMIT_S).json()["status"] == "released"
    assert metrics(server)["forkjoin:internal_errors_total"] == before
