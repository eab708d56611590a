"""An instruct model that was never trained to fork, SmolLM2-135M: asked for an outline, it forks along it.

What a model of this size says is of no use, and greedy loops are long: so each thread is cut short.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from forkjoin_bench.inputs.smollm2 import model_folder
from tests.server.conftest import start_server
from tests.server.reading import (
    SHOWN,
    Answer,
    assert_the_same,
    metrics,
    read_stream,
    read_whole,
    wait_until_idle,
    without_ids,
)

pytestmark = pytest.mark.server

#: To this the model answers with a short list, and ends its turn behind it.
QUESTION = "How do I stay healthy?"
SHORT = {"max_tokens_per_thread": 40}
#: In fp32 greedy choices do not depend on what else is in the batch.
FLAGS = ["--max-model-len", "2048", "--dtype", "float32"]
BRANCHES = {
    "branches": [
        {"title": "Cats", "text": "Cats are"},
        {"title": "Dogs", "text": "\n\nDogs are"},
        {"text": "\n\nBirds are"},
    ],
    "closing": "\n\nIn short,",
}
#: The last word of a sentence.
VOTE = r"(?P<result>\w+)\."
BEST_OF = {"best_of": 5, "vote": VOTE}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    log = tmp_path_factory.mktemp("instruct") / "log"
    with start_server(log, str(model_folder()), "--dialect", "skeleton", *FLAGS) as (address, _):
        yield address


@pytest.fixture(scope="module")
def sdk(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def name(sdk):
    """What the model is called."""
    (model,) = sdk.models.list().data
    return model.id


def _messages(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


@pytest.fixture(scope="module")
def ask(sdk, name):
    def asked(question: str = QUESTION, *, stream: bool = False, forkjoin: dict | None = None, **more):
        body = {"model": name, "temperature": 0, "max_tokens": 600, "messages": _messages(question)} | more
        extra = {"forkjoin": SHORT | (forkjoin or {})}
        if stream:
            options = SHOWN | {"include_usage": True}
            return read_stream(
                sdk.chat.completions.create(**body, stream=True, stream_options=options, extra_body=extra)
            )
        extra["forkjoin"] |= SHOWN
        return read_whole(sdk.chat.completions.create(**body, extra_body=extra))

    return asked


def _num_tokens(address: str, **body) -> int:
    answer = httpx.post(f"{address}/tokenize", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["count"]


def _forks(address: str) -> float:
    return metrics(address).get("forkjoin:forks_total", 0)


@pytest.fixture(scope="module")
def outlined(ask):
    return ask()


@pytest.fixture(scope="module")
def streamed(ask):
    return ask(stream=True)


# ---- the outline -----------------------------------------------------------------------------


def test_the_answer_is_an_outline_and_then_each_of_its_points_in_order(outlined):
    first = outlined.threads[0]["title"]
    outline, _, _ = outlined.content.partition(f"\n\n1. {first}: ")
    points = re.findall(r"(?m)^(\d+)\. (.+)$", outline)
    assert len(points) >= 3
    assert [t["title"] for t in outlined.threads] == [title for _, title in points]
    expanded = [
        f"\n\n{n}. {t['title']}: {t['content']}" for (n, _), t in zip(points, outlined.threads, strict=True)
    ]
    assert outlined.content == outline + "".join(expanded)
    assert outlined.finish_reason == "stop"


def test_each_point_says_something_and_ends_or_is_cut(outlined):
    for thread in outlined.threads:
        assert thread["content"].strip()
        assert thread["parent_id"] == "root"
        cut = thread["usage"]["completion_tokens"] == SHORT["max_tokens_per_thread"]
        assert thread["finish_reason"] == "length" or not cut


def test_the_outlines_and_the_points_tokens_add_up(outlined, address, name):
    first = outlined.threads[0]["title"]
    outline, _, _ = outlined.content.partition(f"\n\n1. {first}: ")
    # and the end of sequence that was taken back for the fork
    num_outline = _num_tokens(address, model=name, prompt=outline, add_special_tokens=False) + 1
    forkjoin = outlined.usage.forkjoin
    assert forkjoin["num_threads"] == len(outlined.threads)
    assert forkjoin["total_tokens"] == num_outline + sum(outlined.thread_tokens)
    assert forkjoin["critical_path_tokens"] == num_outline + max(outlined.thread_tokens)
    assert outlined.usage.completion_tokens == forkjoin["total_tokens"]
    assert outlined.usage.total_tokens == outlined.usage.prompt_tokens + outlined.usage.completion_tokens


def test_streamed_it_is_the_same(streamed, outlined):
    assert_the_same(streamed, outlined)


def test_points_are_written_side_by_side(streamed):
    indices = [e["index"] for e in streamed.entries]
    num = len(streamed.threads)
    assert indices[:num] == list(range(num)), "announced together"
    ends = [i for i, e in enumerate(streamed.entries) if "finish_reason" in e]
    assert set(indices[num : ends[0]]) == set(range(num)), "all spoke before one ended"


def test_a_fork_over_the_limit_of_tokens_ends_the_answer(ask):
    answer = ask(max_tokens=100)
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 100)
    assert len(answer.threads) >= 3


# ---- switched off ----------------------------------------------------------------------------


def test_switched_off_the_model_answers_plainly_and_is_not_told_to_outline(ask, outlined, address, name):
    before = _forks(address)
    plain = ask(forkjoin={"enabled": False}, max_tokens=80)
    assert _forks(address) == before
    assert plain.threads == []
    assert plain.usage.forkjoin["num_threads"] == 0
    assert not re.match(r"\s*1[.)]", plain.content)
    asked = _num_tokens(address, model=name, messages=_messages(QUESTION))
    assert plain.usage.prompt_tokens == asked < outlined.usage.prompt_tokens


# ---- branches --------------------------------------------------------------------------------


def test_branches_are_written_in_order_and_followed_by_the_closing_section(ask):
    answer = ask("Write about cats, dogs and birds.", forkjoin=BRANCHES)
    assert [t["title"] for t in answer.threads] == ["Cats", "Dogs", "3"]
    texts = [b["text"] + t["content"] for b, t in zip(BRANCHES["branches"], answer.threads, strict=True)]
    joined = "".join(texts) + BRANCHES["closing"]
    assert answer.content.startswith(joined)
    closing = answer.content.removeprefix(joined)
    assert closing.strip()
    forkjoin = answer.usage.forkjoin
    num_closing = forkjoin["total_tokens"] - sum(answer.thread_tokens)
    assert num_closing > 1
    assert forkjoin["critical_path_tokens"] == max(answer.thread_tokens) + num_closing
    assert answer.usage.completion_tokens == forkjoin["total_tokens"]


def test_branches_streamed_are_the_same(ask):
    question = "Write about cats, dogs and birds."
    whole, streamed = (ask(question, stream=s, forkjoin=BRANCHES) for s in (False, True))
    assert_the_same(streamed, whole)


def test_branches_without_a_closing_section_end_the_answer(ask):
    branches = {"branches": BRANCHES["branches"]}
    answer = ask("Write about cats, dogs and birds.", forkjoin=branches)
    texts = [b["text"] + t["content"] for b, t in zip(branches["branches"], answer.threads, strict=True)]
    assert answer.content == "".join(texts)
    assert answer.usage.forkjoin["total_tokens"] == sum(answer.thread_tokens)


def test_a_request_that_names_its_branches_is_not_told_to_outline(ask, address, name):
    answer = ask("Write about cats, dogs and birds.", forkjoin=BRANCHES)
    asked = _num_tokens(address, model=name, messages=_messages("Write about cats, dogs and birds."))
    assert answer.usage.prompt_tokens == asked


# ---- best of N -------------------------------------------------------------------------------

CAPITAL = "What is the capital of France? Answer in one sentence."


def _check_vote(answer: Answer) -> None:
    # a thread that was cut had no vote, whatever it had written
    found = [re.findall(VOTE, t["content"]) if t["finish_reason"] != "cut" else [] for t in answer.threads]
    votes = Counter(f[-1] for f in found if f)
    vote = answer.usage.forkjoin["vote"]
    assert votes[vote["result"]] == max(votes.values())
    assert found[vote["index"]][-1] == vote["result"]
    assert answer.content == answer.threads[vote["index"]]["content"]
    assert answer.finish_reason == answer.threads[vote["index"]]["finish_reason"]
    assert len(answer.threads) == answer.usage.forkjoin["num_threads"] == BEST_OF["best_of"]
    assert answer.usage.completion_tokens == sum(answer.thread_tokens)
    assert answer.usage.forkjoin["critical_path_tokens"] == max(answer.thread_tokens)


def test_of_five_answers_the_one_that_most_agree_with_is_taken(ask):
    answer = ask(CAPITAL, forkjoin=BEST_OF, temperature=1, seed=1)
    _check_vote(answer)
    assert len({t["content"] for t in answer.threads}) > 1, "they were drawn independently"


def test_the_vote_of_a_stream_is_told_with_its_usage(ask):
    answer = ask(CAPITAL, stream=True, forkjoin=BEST_OF, temperature=1, seed=1)
    _check_vote(answer)


def test_a_vote_that_ends_early_answers_as_one_that_waits_for_all(ask):
    early, whole = (
        ask(CAPITAL, forkjoin=BEST_OF | {"wait_for_all": waits}, temperature=1, seed=3)
        for waits in (False, True)
    )
    assert early.content == whole.content
    votes = [answer.usage.forkjoin["vote"] for answer in (early, whole)]
    assert [(v["index"], v["result"]) for v in votes] == [(votes[0]["index"], votes[0]["result"])] * 2
    assert votes[1]["cut"] == votes[1]["not_started"] == []


def test_a_seed_draws_the_same_votes_again(ask):
    forkjoin = BEST_OF | {"wait_for_all": True}
    one, two = (ask(CAPITAL, forkjoin=forkjoin, temperature=1, seed=7) for _ in range(2))
    assert without_ids(one.threads) == without_ids(two.threads)
    assert one.usage.forkjoin["vote"] == two.usage.forkjoin["vote"]


# ---- the tutorial ----------------------------------------------------------------------------


def test_the_tutorial_runs_as_written(address, capsys):
    guide = (Path(__file__).parents[2] / "docs/instruct-models.md").read_text()
    assert f"--dialect skeleton {' '.join(FLAGS)}" in guide
    names: dict[str, Any] = {}
    steps = re.findall(r"```python\n(.*?)```", guide, flags=re.S)
    for step in steps:
        exec(step.replace("http://localhost:8000", address), names)
    names["client"].close()  # a program's end would
    assert len(steps) == 4
    assert "\n\nIn short," in capsys.readouterr().out


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forkjoin", "named"),
    [
        (BRANCHES | BEST_OF | {"best_of": 2}, "best_of = 3 or more, for each of branches"),
        ({"best_of": 2, "vote": "("}, r"forkjoin\.vote.*not a regular expression"),
        ({"best_of": 2}, "best_of and vote"),
        ({"closing": "so"}, "branches beside closing"),
        ({"branches": [{}]}, r"forkjoin\.branches\[0\].*a title or a text"),
        ({"best_of": 17, "vote": VOTE}, r"forkjoin\.best_of.*max_threads_per_fork = 16 .*, got 17"),
        (BRANCHES | {"max_threads_per_fork": 2}, r"forkjoin\.branches.*max_threads_per_fork = 2 .*, got 3"),
    ],
    ids=[
        "too_few_threads",
        "regex",
        "no_vote",
        "no_branches",
        "empty_branch",
        "over_the_dialects",
        "over_its_own",
    ],
)
def test_what_cannot_be_is_a_400_that_names_it(ask, forkjoin, named):
    with pytest.raises(openai.BadRequestError, match=named):
        ask(forkjoin=forkjoin)


# ---- what is left ----------------------------------------------------------------------------


def test_a_client_that_hangs_up_in_a_fork_leaves_nothing_running(sdk, address, name):
    before = _forks(address)
    body = {"model": name, "temperature": 0, "messages": _messages(QUESTION), "max_tokens": 1500}
    # without an end of sequence each thread would go on until the context is full
    long = {"forkjoin": BRANCHES, "ignore_eos": True}
    stream = sdk.chat.completions.create(**body, stream=True, stream_options=SHOWN, extra_body=long)
    next(c for c in stream if getattr(c.choices[0].delta, "threads", None))
    stream.close()
    assert _forks(address) == before + 1
    unforked = {"forkjoin": {"enabled": False}}
    wait_until_idle(
        address, lambda: sdk.completions.create(model=name, prompt="x", max_tokens=1, extra_body=unforked)
    )
