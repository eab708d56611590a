"""A request's one budget of tokens, spent anywhere in a fork: how much is generated, and what is shown."""

from __future__ import annotations

import pytest
from msgspec import to_builtins

from forkjoin_scheduler.request.options import CompiledBranch, CompiledOptions
from forkjoin_scheduler.settings import COMPILED, KEY

pytestmark = pytest.mark.engine

TWO = "<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: y</Outline>\n</Outlines>"
BEST = {"best_of": 3, "vote": "a"}


def _ask(engine, max_tokens):
    params = engine.scripted(
        TWO, {"1": "aa</Thread>", "2": "bbbb</Thread>"}, "</Parallel>\nend", max_tokens=max_tokens
    )
    (answer,) = engine.run([engine.prompt("q")], params)
    return answer


def _own(engine):
    return len(engine.tokenizer.encode(TWO))


def test_no_budget_is_exceeded_wherever_in_a_fork_it_ends(engine, events):
    _ask(engine, 3000)
    whole = events("family_ended")[-1]["total_tokens"]
    for max_tokens in range(_own(engine) + 1, whole + 2):
        answer = _ask(engine, max_tokens)
        assert events("family_ended")[-1]["total_tokens"] == min(max_tokens, whole), max_tokens
        assert answer.finish_reason == ("stop" if max_tokens >= whole else "length"), max_tokens


def test_what_is_cut_in_a_fork_is_closed_and_its_thread_says_length(engine, events):
    whole = len(engine.tokenizer.encode("aa</Thread>bbbb</Thread>"))
    for max_tokens in range(_own(engine) + 1, _own(engine) + whole + 1):
        answer = _ask(engine, max_tokens)
        ends = {e["index"]: e["reason"] for e in events("thread_ended")[-2:]}
        assert answer.text.startswith(f"{TWO}\n<Thread>\n1:")
        assert answer.text.endswith("</Thread>\n</Parallel>"), answer.text
        assert (answer.text.count("<Thread>"), answer.text.count("</Thread>")) == (2, 2)
        cut = [n for n, text in enumerate(["aa", "bbbb"]) if f"{n + 1}:{text}</Thread>" not in answer.text]
        assert [n for n, end in sorted(ends.items()) if end != "stop"] == cut, (max_tokens, answer.text)


@pytest.mark.parametrize("max_total_tokens", [1, 2, 3, 5])
def test_a_vote_that_is_cut_answers_with_what_there_is(engine, events, max_total_tokens):
    forkjoin = BEST | {"max_total_tokens": max_total_tokens}
    (answer,) = engine.run([engine.prompt("q")], engine.params(forkjoin=forkjoin, max_tokens=50))
    assert answer.finish_reason == "length"
    assert answer.token_ids, "vLLM streams no end of an answer without a token"
    assert events("family_ended")[-1]["total_tokens"] == max_total_tokens


def test_a_stop_token_of_the_requests_own_ends_the_request_also_where_it_ends_threads(engine, events):
    stop = engine.tokenizer.token_id("</Thread>")
    params = engine.scripted(TWO, {"1": "aa</Thread>", "2": "bbbb</Thread>"}, "end", stop_token_ids=[stop])
    (answer,) = engine.run([engine.prompt("q")], params)
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert answer.text == f"{TWO}\n<Thread>\n1:aa"
    assert {e["index"]: e["reason"] for e in events("thread_ended")} == {0: "request_stop", 1: "cancelled"}


def test_a_request_with_a_thinking_budget_decodes_in_one_row(engine):
    from vllm.v1.request import Request

    params = engine.params(thinking_token_budget=10)
    request = Request("r", engine.prompt("q"), params, None)
    limits = engine.scheduler._core.settings.limits
    assert engine.scheduler._params_reader.of(request, CompiledOptions(), limits) is None
    params.thinking_token_budget = -1
    assert engine.scheduler._params_reader.of(request, CompiledOptions(), limits) is not None


# ---- options, checked once -----------------------------------------------------------------

#: More threads than a fork may have.
TOO_WIDE = {"best_of": 51, "vote": "a", "max_threads_per_fork": 50}


def _asking(engine, extra_args):
    from vllm import SamplingParams
    from vllm.v1.request import Request

    return Request("r", engine.prompt("q"), SamplingParams(extra_args=extra_args), None)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (TOO_WIDE, "forkjoin.best_of: expected at most max_threads_per_fork = 50 (the request's own"),
        ({"best_of": 2}, "expected best_of and vote together"),
        (
            {"best_of": 2, "vote": "a", "prune": "own"},
            "forkjoin.prune: expected a server with a --prune-policy",
        ),
        (
            {"branches": [{"text": "a", "response_format": {}}]},
            "forkjoin.branches[0].response_format: expected",
        ),
        (3, "forkjoin: expected an object, got int"),
    ],
    ids=["limit", "fields", "policy", "format", "kind"],
)
def test_what_comes_without_a_server_is_checked_by_the_engine_and_decodes_in_one_row(
    engine, monkeypatch, asked, sentence
):
    from forkjoin_scheduler.vllm_seam.starts import params_reader

    warned = []
    monkeypatch.setattr(params_reader, "_warn", lambda request, message: warned.append(message))
    assert engine.scheduler._params_reader._options(_asking(engine, {KEY: asked})) == CompiledOptions(
        enabled=False
    )
    (message,) = warned
    assert sentence in message
    assert message.endswith("; decoding sequentially")


def test_what_comes_without_a_server_may_be_what_the_http_api_takes(engine):
    options = engine.scheduler._params_reader._options(
        _asking(engine, {KEY: {"branches": [{"text": "a:"}], "closing": "so"}})
    )
    encode = engine.tokenizer.encode
    assert options == CompiledOptions(branches=[CompiledBranch("", encode("a:"))], closing=encode("so"))


def test_what_an_api_process_has_checked_is_not_checked_again(engine):
    sent = CompiledOptions(**TOO_WIDE)
    assert engine.scheduler._params_reader._options(_asking(engine, {COMPILED: to_builtins(sent)})) == sent
    assert engine.scheduler._params_reader._options(_asking(engine, None)) == CompiledOptions()
