"""LoRA adapters over HTTP, each under its name as a model, at once and beside the model without one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product

import pytest
from openai import OpenAI

from forkjoin_server.start.configuration import EMBEDDED_MODEL
from tests.engine.conftest import worksheets
from tests.server.asking import LIMIT_S, chat
from tests.server.conftest import start_server
from tests.server.reading import SHOWN, assert_the_same, metrics, read_stream, read_whole

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

#: Over which the adapters answer otherwise than each other, and fork.
SHEETS = worksheets(3, seed=61)
MODELS = ("abacus", "first", "second")
#: What the rounding of fp32 may move a logprob by, computed in another batch.
NATS = 1e-3


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from tests.engine.adapters import RANK, adapter

    folder = tmp_path_factory.mktemp("adapters")
    served = [adapter(n, folder / name, EMBEDDED_MODEL) for n, name in enumerate(MODELS[1:], 1)]
    flags = ["--dtype", "float32", "--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "2"]
    flags += ["--lora-modules", *(f"{n}={a.lora_path}" for n, a in zip(MODELS[1:], served, strict=True))]
    with start_server(folder / "log", *flags) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address):
    with OpenAI(base_url=f"{address}/v1", api_key="none", timeout=LIMIT_S) as openai:
        yield openai


def _whole(client, model, sheet):
    """An answer that is not streamed, and the log-probabilities of its tokens."""
    asked = chat(sheet) | {"model": model, "max_tokens": 1500}
    answer = client.chat.completions.create(**asked, logprobs=True, extra_body={"forkjoin": SHOWN})
    return read_whole(answer), [token.logprob for token in answer.choices[0].logprobs.content]


def _stream(client, model, sheet):
    asked = chat(sheet) | {"model": model, "max_tokens": 1500, "stream": True}
    shown = {"include_usage": True, **SHOWN}
    return read_stream(client.chat.completions.create(**asked, stream_options=shown))


def test_an_adapter_is_asked_for_by_its_name_and_answers_at_once_with_others_as_it_does_alone(
    address, client
):
    assert [model.id for model in client.models.list()] == list(MODELS)
    asked = list(product(MODELS, range(len(SHEETS))))
    alone = {(model, n): _whole(client, model, SHEETS[n]) for model, n in asked}
    for model in MODELS:
        assert any(len(alone[model, n][0].threads) > 1 for n in range(len(SHEETS))), "it forks"
    for one, other in combinations(MODELS, 2):
        pairs = [(alone[one, n][1], alone[other, n][1]) for n in range(len(SHEETS))]
        off = [abs(a - b) for pair in pairs for a, b in zip(*pair, strict=False)]
        assert max(off) > 10 * NATS, "adapters show"
    with ThreadPoolExecutor(2 * len(asked)) as at_once:
        streams = {key: at_once.submit(_stream, client, key[0], SHEETS[key[1]]) for key in asked}
        wholes = {key: at_once.submit(_whole, client, key[0], SHEETS[key[1]]) for key in asked}
    for key, (answer, logprobs) in alone.items():
        assert_the_same(streams[key].result(), answer)
        beside_others, their_logprobs = wholes[key].result()
        assert_the_same(beside_others, answer)
        assert their_logprobs == pytest.approx(logprobs, abs=NATS)
    assert metrics(address)["forkjoin:internal_errors_total"] == 0
