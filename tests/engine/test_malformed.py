"""Malformed output ends in the dialect's policy, never in an error or a lost block: the table, run."""

from __future__ import annotations

import pytest
from msgspec import convert

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import builtin_names, load
from tests.engine import renamed
from tests.engine.malformed_cases import (
    CASES,
    EXCLUDED,
    KINDS,
    MULTIVERSE,
    NPR,
    SUMMARY,
    THREADWEAVER,
    Case,
    ends,
)

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def speaking(model_of):
    """The engine that speaks a dialect."""
    from tests.engine.harness import Engine

    engines = {}

    def speak(name: str) -> Engine:
        if name not in engines:
            options = {"max_model_len": 2048, "num_gpu_blocks_override": 400}
            # how near the end of max_tokens a fork may be is tested without an engine
            dialect = renamed.dialect_for(name).model_copy(update={"min_left": 0, "reserve": 0})
            engines[name] = Engine(dialect, model_of(name), **options)
        return engines[name]

    return speak


@pytest.fixture
def contexts(monkeypatch):
    """The tokens that branches went on from."""
    from forkjoin_scheduler.vllm_seam.starts import requests
    from forkjoin_scheduler.vllm_seam.threads import resuming

    seen = []

    def rebase_prompt(request, token_ids, params):
        requests.rebase_prompt(request, token_ids, params)
        seen.append(list(request.prompt_token_ids))

    monkeypatch.setattr(resuming, "rebase_prompt", rebase_prompt)
    return seen


def counts() -> dict[str, float]:
    from forkjoin_server.operate.metrics import MALFORMED

    (metric,) = MALFORMED.collect()
    samples = [s for s in metric.samples if s.name.endswith("_total")]
    return {f"{s.labels['kind']}/{s.labels['policy']}": s.value for s in samples}


def counted(events) -> dict[str, float]:
    """What the counter has more when it has been told all events of the test."""
    from forkjoin_scheduler.publish.events import Event
    from forkjoin_server.operate.metrics import SERVER

    before = counts()
    for kind in ("forked", "thread_ended", "refused", "tolerated", "limited"):
        for event in events(kind):
            SERVER.observe(convert(event, Event), 0)
    after = {key: value - before.get(key, 0) for key, value in counts().items()}
    return {key: more for key, more in after.items() if more}


def how_threads_ended(events) -> tuple[str, ...]:
    numbers = {t["index"]: t["number"] for e in events("forked") for t in e["threads"]}
    ended = {e["index"]: e["reason"] for e in events("thread_ended")}
    assert sorted(ended) == sorted(numbers) == list(range(len(numbers)))
    return tuple(f"{numbers[i]} {ended[i]}" for i in sorted(numbers))


def run(engine, case: Case, **options):
    encode = engine.tokenizer.encode
    script = [[encode(end), encode(text)] for end, text in case.script.items()]
    root = encode(case.script[""])
    forkjoin, prompt = dict(case.forkjoin), engine.prompt("q")
    if case.spend is not None:
        forkjoin["max_total_tokens"] = len(root) + case.spend
    if case.room is not None:
        own = len(root) if not case.forkjoin.get("branches") else 0
        prompt = engine.prompt("q" * (2048 - case.room - own - len(engine.prompt(""))))
    params = engine.params(forkjoin=forkjoin, extra_args={"script": script, "eos": engine.eos}, **options)
    (answer,) = engine.run([prompt], params)
    return prompt, answer


IDS = [(name, kind, n) for (name, kind), cases in CASES.items() for n in range(len(cases))]


@pytest.mark.parametrize(("name", "kind", "n"), IDS)
def test_malformed_output_comes_to_what_the_dialect_says(speaking, events, contexts, name, kind, n):
    case, engine = CASES[name, kind][n], speaking(name)
    prompt, answer = run(engine, case)
    end = [engine.eos] if case.finish == "stop" else []
    if case.stop is not None:
        end = engine.tokenizer.encode(case.stop)
    shown = engine.tokenizer.decode(answer.token_ids[: len(answer.token_ids) - len(end)])
    assert shown == case.answer
    assert answer.token_ids == [*engine.tokenizer.encode(case.answer), *end]
    assert answer.finish_reason == case.finish
    assert how_threads_ended(events) == case.threads
    assert counted(events) == case.counted
    for ended in events("family_ended"):
        assert ended["num_threads"] == len(case.threads)
        assert ended["total_tokens"] + ended["surplus_tokens"] == len(answer.token_ids)
    if case.contexts is None:
        whole = [*prompt, *answer.token_ids]
        assert all(whole[: len(c)] == c for c in contexts)
    else:
        texts = [engine.tokenizer.decode(c).rpartition("<|assistant|>")[2] for c in contexts]
        assert len(texts) == len(case.contexts)
        assert all(t.endswith(c) for t, c in zip(texts, case.contexts, strict=True))
    assert engine.snapshot() == engine.baseline


def test_every_dialect_has_every_case_or_a_reason_why_not():
    pairs = {(name, kind) for name in builtin_names() for kind in KINDS}
    assert {pair for pair in pairs if (pair in CASES) == (pair in EXCLUDED)} == set()
    assert CASES.keys() | EXCLUDED.keys() == pairs
    assert all(EXCLUDED.values())
    assert load("parathinker").join.text == SUMMARY


# ---- room, and positions -------------------------------------------------------------------------

TWO = MULTIVERSE.root(1, 2)
THIRTY = dict.fromkeys((1, 2), "a" * 30 + MULTIVERSE.end)


def run_multiverse(engine, case: Case, events, **changes):
    """The answer's text, its finish reason, and what is counted, with fields of the dialect changed."""
    fields = load("multiverse").model_dump() | {"min_left": 0} | changes
    with engine.speaking(Dialect.model_validate(fields)):
        _, answer = run(engine, case)
    assert engine.snapshot() == engine.baseline
    return answer.text, answer.finish_reason, counted(events)


@pytest.mark.parametrize("room", range(1, 14))
def test_a_stitched_thread_starts_only_where_it_can_close(speaking, events, room):
    case = Case(MULTIVERSE.script(TWO, THIRTY), "", room=room)
    text, finish, counts = run_multiverse(speaking("multiverse"), case, events, min_room=1)
    # a header of 5 tokens, one of its own, 3 that close it, and the next
    if room < 10:
        assert (text, finish, counts) == (TWO, "stop", {"no_room/sequential": 1})
    else:
        closed = dict.fromkeys((1, 2), "a" * (room - 9) + f"\n{MULTIVERSE.end}")
        assert (text, finish) == (MULTIVERSE.shown(TWO, closed) + MULTIVERSE.close, "length")
        assert counts == {"thread_length/close_thread": 2, "joined_too_long/end_request": 1}


def test_a_stitched_thread_that_has_forked_itself_can_close_at_the_end_of_the_context(speaking, events):
    inner = MULTIVERSE.root("1.1")
    script = MULTIVERSE.script(MULTIVERSE.root(1), {1: inner, "1.1": f"x{MULTIVERSE.end}"}, after="a" * 999)
    case = Case(script, "", room=200)
    text, finish, counts = run_multiverse(speaking("multiverse"), case, events)
    assert text.endswith(f"aaa\n{MULTIVERSE.end}\n{MULTIVERSE.close}")
    assert finish == "length"
    assert counts == {"thread_length/close_thread": 1, "joined_too_long/end_request": 1}


def leaving(engine, num_left: int) -> dict[str, dict[str, int]]:
    """Positions that leave so many behind the join of threads that begin with 1000 tokens left."""
    own = [len(engine.tokenizer.encode(f"\n{MULTIVERSE.thread}\n{n}:{t}\n")) for n, t in THIRTY.items()]
    last = 2048 - 1000 - 1 + max(own)
    join_gap = 2048 - num_left - len(engine.tokenizer.encode(MULTIVERSE.join)) - last
    return {"positions": {"fork_gap": 1, "join_gap": join_gap}}


@pytest.mark.parametrize("num_left", [3, 1, 0])
def test_positions_run_out_behind_a_join_before_slots_do(speaking, events, num_left):
    engine = speaking("multiverse")
    case = Case(MULTIVERSE.script(TWO, THIRTY, after="b" * 90), "", room=1000)
    text, finish, counts = run_multiverse(engine, case, events, **leaving(engine, num_left))
    behind = MULTIVERSE.join + "b" * num_left if num_left else MULTIVERSE.close
    assert text == MULTIVERSE.shown(TWO, THIRTY) + behind
    assert finish == "length"
    assert counts == ({} if num_left else {"joined_too_long/end_request": 1})


@pytest.mark.parametrize("num_left", [49, 50], ids=["too_few", "enough"])
def test_a_second_fork_needs_positions_too(speaking, events, num_left):
    engine, again = speaking("multiverse"), MULTIVERSE.root(7)
    positions = leaving(engine, len(engine.tokenizer.encode(again)) + num_left)
    script = MULTIVERSE.script(TWO, THIRTY, after=again) | {f"{MULTIVERSE.thread}\n7:": "a" * 90}
    case = Case(script, "", room=1000)
    text, _, counts = run_multiverse(engine, case, events, min_room=50, **positions)
    joined = MULTIVERSE.shown(TWO, THIRTY) + MULTIVERSE.join
    if num_left < 50:
        assert (text, counts) == (joined + again, {"no_room/sequential": 1})
    else:
        # less its header, what closes it, and the next
        thread = "a" * (num_left - 9) + f"\n{MULTIVERSE.end}"
        assert text == joined + MULTIVERSE.shown(again, {7: thread}) + MULTIVERSE.close
        assert counts == {"thread_length/close_thread": 1, "joined_too_long/end_request": 1}


@pytest.mark.parametrize(("fork_gap", "forks"), [(900, True), (1020, False), (3000, False)])
def test_a_fork_beyond_the_last_position_is_refused(speaking, events, fork_gap, forks):
    case = Case(MULTIVERSE.script(TWO, THIRTY), "", room=1000)
    positions = {"fork_gap": fork_gap, "join_gap": 1}
    text, _, counts = run_multiverse(speaking("multiverse"), case, events, positions=positions)
    assert text == (MULTIVERSE.shown(TWO, THIRTY) + f"{MULTIVERSE.join}end" if forks else TWO)
    assert counts == ({} if forks else {"no_room/sequential": 1})


# ---- what a request sets -------------------------------------------------------------------------

BLOCKS = {"threadweaver": THREADWEAVER, "multiverse": MULTIVERSE, "npr": NPR}


@pytest.fixture(params=BLOCKS)
def block(request, speaking):
    """A published layout, and the engine that speaks it."""
    return BLOCKS[request.param], speaking(request.param)


def test_a_stop_token_of_the_request_ends_the_answer_in_its_thread(block):
    layout, engine = block
    root, first = layout.root(1, 2, 3), {1: f"a{layout.end}"}
    script = layout.script(root, first | {2: "bZ", 3: "c" * 20 + layout.end})
    stop = engine.tokenizer.token_id("Z")
    _, answer = run(engine, Case(script, ""), stop_token_ids=[stop])
    assert answer.text == layout.shown(root, first) + f"{layout.thread}\n2:b"
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert engine.snapshot() == engine.baseline


def test_a_stop_string_inside_a_thread_ends_the_answer_there(block):
    layout, engine = block
    root = layout.root(1, 2)
    script = layout.script(root, {1: "aaSTOPaaaa" + layout.end, 2: "b" * 30 + layout.end})
    _, answer = run(engine, Case(script, ""), stop=["STOP"])
    assert (answer.text, answer.stop_reason) == (f"{root}\n{layout.thread}\n1:aa", "STOP")
    assert engine.snapshot() == engine.baseline


@pytest.mark.parametrize("num_tokens", [60, 75])
def test_max_tokens_that_run_out_in_a_fork_are_spent_to_the_last(block, events, num_tokens):
    layout, engine = block
    script = layout.script(layout.root(1, 2), dict.fromkeys((1, 2), "a" * 90 + layout.end))
    _, answer = run(engine, Case(script, ""), max_tokens=num_tokens)
    assert answer.finish_reason == "length"
    assert events("family_ended")[-1]["total_tokens"] == num_tokens
    assert counted(events) == {"total_tokens/end_request": 1}
    assert engine.snapshot() == engine.baseline


def test_a_policy_may_end_the_request_at_the_join_instead(block, events):
    layout, engine = block
    root = layout.root(1, 2)
    fields = load(engine.dialect.name).model_dump() | {"min_left": 0, "reserve": 0}
    fields["policies"] |= {"thread_eos": "end_request"}
    script = layout.script(root, {1: "aa", 2: f"b{layout.end}"})
    with engine.speaking(Dialect.model_validate(fields)):
        _, answer = run(engine, Case(script, ""))
    closed = {1: f"aa\n{layout.end}", 2: f"b{layout.end}"}
    assert (answer.text, answer.finish_reason) == (layout.shown(root, closed) + layout.close, "stop")
    assert how_threads_ended(events) == ("1 eos", "2 stop")
    assert engine.snapshot() == engine.baseline


def test_a_request_forks_as_often_as_it_may(speaking, events):
    root = THREADWEAVER.root(1, 2)
    # the script writes the same block behind every join
    case = Case(THREADWEAVER.script(root, THREADWEAVER.well(1, 2), after=root), "")
    _, answer = run(speaking("threadweaver"), case)
    block = THREADWEAVER.shown(root, THREADWEAVER.well(1, 2)) + THREADWEAVER.join
    assert (answer.text, answer.finish_reason) == (block * 16, "length")
    assert how_threads_ended(events) == ends((1, 2) * 16, "stop")
    assert counted(events) == {"too_many_turns/end_request": 1}
    assert speaking("threadweaver").snapshot() == speaking("threadweaver").baseline
