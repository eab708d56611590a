"""Every policy that a dialect may name does what it says, and is reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from forkjoin_scheduler.dialects.dialect import Dialect
from tests.engine.conftest import worksheets

pytestmark = pytest.mark.engine

TWO = "<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: y</Outline>\n</Outlines>"
TWICE = "<Outlines><Outline>1: x</Outline><Outline>1: z</Outline></Outlines>"
INNER = "<Outlines><Outline>1.1: p</Outline><Outline>1.2: q</Outline></Outlines>"
WELL = {"1": "a</Thread>", "2": "b</Thread>"}


@pytest.fixture
def speaks(engine) -> Iterator:
    """Lets the engine speak ThreadWeaver's dialect with some fields changed, until the test ends."""
    original = engine.dialect
    with ExitStack() as until_the_end:

        def change(**sections) -> None:
            fields = original.model_dump()
            for name, value in sections.items():
                fields[name] = fields[name] | value if isinstance(value, dict) else value
            until_the_end.enter_context(engine.speaking(Dialect.model_validate(fields)))

        yield change


def _run(engine, root, threads, after="</Parallel>\nend", **options):
    return engine.run([engine.prompt("q")], engine.scripted(root, threads, after, **options))[0]


@pytest.mark.parametrize(
    ("reason", "root", "limits"),
    [
        ("no_outline", "<Outlines>none</Outlines>", {}),
        ("duplicate_outline", TWICE, {}),
        ("too_many_threads", TWO, {"max_threads_per_fork": 1}),
        ("too_many_forks", TWO, {"max_forks": 0}),
    ],
)
def test_a_refused_fork_may_end_the_request_behind_a_closed_block(
    engine, speaks, events, reason, root, limits
):
    speaks(policies={reason: "end_request"})
    answer = _run(engine, root + "never", {}, forkjoin=limits)
    assert (answer.text, answer.finish_reason) == (root + "\n</Parallel>", "length")
    assert [(e["reason"], e["policy"]) for e in events("refused")] == [(reason, "end_request")]


def test_duplicates_may_refuse_the_fork(engine, speaks):
    speaks(policies={"duplicate_outline": "sequential"})
    assert _run(engine, f"{TWICE}on", {}).text == f"{TWICE}on"


@pytest.mark.parametrize(("reason", "text"), [("thread_eos", "aa"), ("thread_length", "aaaaaa")])
def test_a_thread_may_be_closed_and_the_family_go_on(engine, speaks, events, reason, text):
    speaks(policies={reason: "close_thread"})
    limits = {"max_tokens_per_thread": 4}
    answer = _run(
        engine, TWO, {"1": text, "2": "b</Thread>"}, forkjoin=limits, behind={"2:b</Thread>\n": "on"}
    )
    assert answer.text == f"{TWO}\n<Thread>\n1:{text[:4]}\n</Thread><Thread>\n2:b</Thread>\non"
    assert answer.finish_reason == "stop"
    assert [e["policy"] for e in events("thread_ended") if "policy" in e] == ["close_thread"]


def test_the_whole_request_is_held_to_its_total_forked_or_not(engine, events):
    plain = _run(engine, "x" * 50, {}, forkjoin={"max_total_tokens": 20})
    assert (plain.text, plain.finish_reason) == ("x" * 20, "length")
    total = len(engine.tokenizer.encode(TWO)) + 8
    forked = _run(engine, TWO, {"1": "a" * 30, "2": "b" * 30}, forkjoin={"max_total_tokens": total})
    cut = f"{TWO}\n<Thread>\n1:aaaa\n</Thread><Thread>\n2:bbbb\n</Thread>\n</Parallel>"
    assert (forked.text, forked.finish_reason) == (cut, "length")
    assert [e["reason"] for e in events("limited")] == ["total_tokens"]
    sequential = _run(engine, "x" * 50, {}, forkjoin={"max_total_tokens": 20, "enabled": False})
    assert (sequential.text, sequential.finish_reason) == ("x" * 20, "length")


def test_sampling_overrides_hold_in_their_phase_and_give_way_to_the_request(engine, speaks):
    prompts = [engine.prompt(s.prompt) for s in worksheets(4, seed=5)]
    speaks(sampling={"thread": {"frequency_penalty": 2.0}})
    overridden = engine.run(prompts, engine.params(max_tokens=600))
    asked = engine.run(prompts, engine.params(max_tokens=600, frequency_penalty=0.0001))
    speaks(sampling={"thread": {}})
    plain = engine.run(prompts, engine.params(max_tokens=600))
    heads = [a.text.partition("</Outlines>")[0] for a in plain]
    assert [a.text.partition("</Outlines>")[0] for a in overridden] == heads
    assert [a.text for a in overridden] != [a.text for a in plain]
    assert [a.text for a in asked] == [a.text for a in plain]


def test_threads_fork_where_the_dialect_nests_and_all_is_joined_in_order(engine, speaks, events):
    speaks(max_depth=2)
    threads = {"1": f"a{INNER}", "1.1": "ppp</Thread>", "1.2": "q</Thread>", "2": "b" * 40 + "</Thread>"}
    behind = {"1.2:q</Thread>\n": "A</Thread>", f"{'b' * 40}</Thread>\n": "end"}
    engine.steps.clear()
    answer = _run(engine, TWO, threads, behind=behind)
    inner = f"1:a{INNER}\n<Thread>\n1.1:ppp</Thread><Thread>\n1.2:q</Thread>\nA</Thread>"
    assert answer.text == f"{TWO}\n<Thread>\n{inner}<Thread>\n2:{'b' * 40}</Thread>\nend"
    parents = [(e["parent_index"], [t["index"] for t in e["threads"]]) for e in events("forked")]
    assert parents == [(-1, [0, 1]), (0, [2, 3])]
    assert [e["parent_index"] for e in events("joined")] == [0, -1]
    ended = events("family_ended")[-1]
    assert ended["num_threads"] == 4
    own = [
        len(engine.tokenizer.encode(t))
        for t in (TWO, "a" + INNER, "A</Thread>", "ppp</Thread>", "q</Thread>")
    ]
    longest = max(own[1] + own[2] + own[3], 41)
    assert ended["critical_path_tokens"] == own[0] + longest + len("end") + 1
    header = len(engine.tokenizer.encode("\n<Thread>\n1.1:")) + 1
    assert {s["num"] for s in _first_steps(engine, (2, 3))} == {header}


def _first_steps(engine, indices):
    for index in indices:
        yield {"num": next(n for step in engine.steps for i, n in step.items() if i.endswith(f"#{index}"))}


def test_a_nested_fork_is_cut_short_by_every_kind_of_end_and_nothing_is_left(engine, speaks):
    speaks(max_depth=2)
    threads = {"1": f"a{INNER}", "1.1": "ppp", "1.2": "q</Thread>", "2": "b" * 9 + "</Thread>"}
    by_eos = _run(engine, TWO, threads)
    inner = f"1:a{INNER}\n<Thread>\n1.1:ppp\n</Thread><Thread>\n1.2:q</Thread>\n</Parallel>"
    assert by_eos.text == f"{TWO}\n<Thread>\n{inner}\n</Thread><Thread>\n2:{threads['2']}\n</Parallel>"
    stop = engine.tokenizer.token_id("Z")
    threads |= {"1.1": "pZ"}
    stopped = _run(engine, TWO, threads, stop_token_ids=[stop])
    assert stopped.text == f"{TWO}\n<Thread>\n1:a{INNER}\n<Thread>\n1.1:p"
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    for num_steps in range(40, 110, 4):
        params = engine.scripted(TWO, threads | {"1.1": "p" * 20 + "</Thread>"})
        request_id = engine.add(engine.prompt("q"), params)
        for _ in range(num_steps):
            engine.core.step()
        engine.core.abort_request([request_id])
        engine.drain()
        assert engine.snapshot() == engine.baseline
