"""What an engine tells an operator of its families: the scheduler, no model."""

from __future__ import annotations

import json
from queue import Queue
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.families.family import BranchState
from forkjoin_scheduler.vllm_seam.front_end.engine_calls import answer_front_ends
from forkjoin_scheduler.vllm_seam.starts import overview
from forkjoin_scheduler.vllm_seam.starts.overview import MAX_FAMILIES
from forkjoin_server.http.route_fields import ForkJoinEngine
from tests.engine.accounts import _num_freed_with
from tests.engine.fed import Scripted

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """No time passes while families are looked at: how many are shown is the same on every machine."""
    monkeypatch.setattr(overview, "time", SimpleNamespace(thread_time=lambda: 0.0, time=lambda: 1e9))


def fork(fed, *lengths):
    return fed.author.fork(list(lengths))


def shown(fed):
    """Each family's row by the id of its request."""
    return {row["request_id"]: row for row in fed.scheduler.overview()["families"]}


def states(fed, name, until):
    """The states that the family ``name`` is shown in, in their order, until ``until``."""
    seen = []
    while not until():
        row = shown(fed).get(name)
        if row is not None and row["state"] not in seen[-1:]:
            seen.append(row["state"])
        fed.step()
    return seen


def test_a_family_is_shown_in_each_state_that_it_passes_through():
    fed = Scripted()
    fed.add("r0", 4, fork(fed, 30, 40), 12)
    seen = states(fed, "r0", lambda: not fed.scheduler.requests)
    assert seen == ["waiting", "decoding", "forked", "joining", "decoding"]


def test_what_is_shown_is_what_the_schema_says_that_is_shown():
    fed = Scripted()
    fed.add("r0", 4, fork(fed, 30, 40), 12)
    fed.step_until(lambda: any(e["type"] == "forked" for e in fed.events))
    fed.add("r1", 4)
    seen = fed.scheduler.overview()
    for row in seen["families"]:
        del row["tenant"]
    assert ForkJoinEngine.model_validate(seen).num_families == 2


def test_a_prompt_of_several_steps_is_shown_as_prefill():
    fed = Scripted()
    fed.add("r0", 4, prompt=fed.author.text(3000))
    fed.step()
    assert shown(fed)["r0"]["state"] == "prefill"
    fed.drain()


def test_threads_are_counted_by_their_state():
    fed = Scripted(max_num_seqs=2, dialect=load("threadweaver").model_copy(update={"max_depth": 2}))
    text, within = fed.author.text, fed.author.fork([20, 20], within="2.")
    nested = fed.author.fork_into([(text(9),), (text(4), within, text(5)), (text(60),)])
    fed.add("r0", 2, nested, 4)
    seen = []
    while fed.scheduler.requests:
        row = shown(fed).get("r0")
        if row is not None and sum(row["threads"].values()):
            live = fed.scheduler._core.live["r0"]
            assert sum(row["threads"].values()) == len(live.family.threads)
            assert row["threads"]["parked"] == sum(t.state is BranchState.PARKED for t in live.family.threads)
            seen.append(row["threads"])
        fed.step()
    assert {key for threads in seen for key, num in threads.items() if num} == {
        "running",
        "waiting",
        "parked",
        "ended",
    }
    assert max(threads["running"] for threads in seen) == 2


def waits(fed, name):
    """What the family ``name`` is shown to wait for in each step, without repetition."""
    seen = []
    while fed.scheduler.requests:
        row = shown(fed).get(name)
        if row is not None and [row["waits_for"]] != seen[-1:]:
            seen.append(row["waits_for"])
        fed.step()
    return seen


def test_a_request_waits_for_its_turn_then_for_room_then_for_nothing():
    fed = Scripted(max_num_seqs=1)
    for name in ("r0", "r1", "r2"):
        fed.add(name, 6)
    assert waits(fed, "r2") == [["turn"], ["room"], []]


def test_a_family_waits_for_what_its_threads_wait_for():
    fed = Scripted(max_num_seqs=2)
    fed.add("r0", 4, fork(fed, 30, 40, 20), 12)
    seen = waits(fed, "r0")
    assert seen[0] == ["room"]  # it has arrived
    assert ["room"] in seen[2:]
    assert seen[-1] == []


def test_its_blocks_are_those_that_return_to_the_pool_with_it_and_its_peak_is_the_most_of_them():
    fed = Scripted()
    fed.add("r0", 2, fork(fed, 60, 60), 4)
    most = 0
    while fed.scheduler.requests:
        row = shown(fed).get("r0")
        if row is not None:
            assert row["kv_blocks"] == _num_freed_with(fed.scheduler, "r0")
            most = max(most, row["kv_blocks"])
            assert row["peak_kv_blocks"] in (None, most)
        fed.step()
    assert most > 10


def test_what_admission_expects_is_shown_beside_what_came():
    fed = Scripted()
    fed.add("r0", 2, fork(fed, 60, 60), 4, max_tokens=160)
    assert shown(fed)["r0"]["expected_kv_blocks"] is None  # it has not been let in
    fed.step()
    # four blocks of prompt, and 0.8 of: ten of tokens, and one of each of four threads
    assert shown(fed)["r0"]["expected_kv_blocks"] == pytest.approx(4 + 0.8 * (10 + 4))
    peak = 0
    while fed.scheduler.requests:
        peak = max(peak, shown(fed).get("r0", {}).get("peak_kv_blocks") or 0)
        fed.step()
    (ratio,) = [r for e in fed.events if e["type"] == "admission" for r in e["peak_ratios"]]
    assert ratio == pytest.approx(peak / (4 + 0.8 * 14), abs=1 / 15)


def test_the_peak_is_seen_where_nobody_looks():
    fed = Scripted()
    fed.add("r0", 2, fork(fed, 200, 60, 60, 60), 4)
    fed.step()
    tokens = fed.scheduler.overview()["expected"]["tokens"]
    prior = shown(fed)["r0"]["expected_kv_blocks"]
    assert prior == pytest.approx(4 + 0.8 * (tokens / 16 + 4), abs=0.01)
    fed.step_until(lambda: not fed.scheduler.requests)
    (ratio,) = [r for e in fed.events if e["type"] == "admission" for r in e["peak_ratios"]]
    assert ratio * prior > (64 + 2 + 4 * 60) / 16


def test_a_request_that_is_aborted_says_nothing_of_what_admission_expects():
    from vllm.v1.request import RequestStatus

    fed = Scripted()
    fed.add("r0", 2, fork(fed, 60, 60), 4)
    fed.step()
    fed.scheduler.finish_requests("r0", RequestStatus.FINISHED_ABORTED)
    fed.step()
    assert not [e for e in fed.events if e["type"] == "admission"]


def test_no_more_families_are_shown_than_the_bound_and_the_rest_is_counted():
    fed = Scripted(max_num_seqs=3)
    for i in range(MAX_FAMILIES + 20):
        fed.add(f"r{i}", 2, fork(fed, 20, 20), 4)
    for _ in range(10):
        fed.step()
    seen = fed.scheduler.overview()
    assert (len(seen["families"]), seen["num_left_out"]) == (
        MAX_FAMILIES,
        seen["num_families"] - MAX_FAMILIES,
    )
    first, *_, last = seen["families"]  # what has begun is not left out
    assert (first["state"] != "waiting", last["state"]) == (True, "waiting")
    assert seen["num_families"] == MAX_FAMILIES + 20 - sum(
        bool(o) and o[-1].finished for o in fed.outputs.values()
    )


def test_no_family_is_looked_at_behind_the_time_that_an_answer_may_take(monkeypatch):
    fed = Scripted()
    for i in range(5):
        fed.add(f"r{i}", 4)
    ticks = iter([0.0, 0.0, overview.MAX_S / 2, overview.MAX_S * 2])
    monkeypatch.setattr(overview, "time", SimpleNamespace(thread_time=lambda: next(ticks), time=lambda: 1e9))
    seen = fed.scheduler.overview()
    assert (len(seen["families"]), seen["num_left_out"]) == (2, 3)
    fed.drain()


def test_a_family_that_cannot_be_shown_is_left_out_and_goes_on(monkeypatch):
    fed = Scripted()
    fed.add("r0", 2, fork(fed, 20, 20), 4)
    fed.add("r1", 2, fork(fed, 20, 20), 4)
    fed.step()
    written = fed.scheduler._gate.written
    monkeypatch.setattr(
        fed.scheduler._gate, "written", lambda r: 1 / 0 if r.request_id == "r0" else written(r)
    )
    seen = fed.scheduler.overview()
    monkeypatch.undo()
    assert ([row["request_id"] for row in seen["families"]], seen["num_left_out"]) == (["r1"], 1)
    assert sorted(fed.drain()) == ["r0", "r1"]
    assert {"type": "internal_error", "where": "overview"} in fed.events


def test_it_changes_nothing():
    def told(looks):
        fed = Scripted(max_num_seqs=3)
        for i in range(6):
            fed.add(f"r{i}", 2, fork(fed, 24, 20, 16), 24)
        steps = []
        while fed.scheduler.requests:
            steps.append(fed.step().num_scheduled_tokens)
            if looks:
                json.dumps(fed.scheduler.overview())
        return steps, [len(outputs) for outputs in fed.outputs.values()]

    assert told(looks=True) == told(looks=False)


def test_an_engine_core_sends_a_front_end_what_its_scheduler_answers():
    from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequestType
    from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    answer_front_ends()
    fed = Scripted()
    fed.add("r0", 2, fork(fed, 20, 20), 4)
    fed.step()
    core = object.__new__(EngineCoreProc)
    core.scheduler, core.output_queue = fed.scheduler, Queue()
    core.shutdown_state = EngineShutdownState.RUNNING
    core._handle_client_request(EngineCoreRequestType.UTILITY, (3, 7, "forkjoin_overview", ()))
    client, outputs = core.output_queue.get_nowait()
    told = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(outputs)).utility_output
    assert (client, told.call_id, told.failure_message) == (3, 7, None)
    assert told.result.result == fed.scheduler.overview()
