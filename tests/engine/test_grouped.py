"""Which rows of a step are grouped, on the real scheduler, and grouped attention in an engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_server.start.configuration import EMBEDDED_MODEL

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]


def _groups(scheduler: Any, setting: str = "0") -> list[Any]:
    """Let ``scheduler`` group what it can, as if a worker could; the groups of each step, which are checked."""
    from forkjoin_bench.vllm_seam.fed import runner_output
    from forkjoin_scheduler.vllm_seam.grouped.handing import Report, attach_report, groups_of
    from forkjoin_scheduler.vllm_seam.grouped.ordering import Grouping

    core = scheduler._core
    core.settings = core.settings.model_copy(update={"grouped_attention": setting})
    scheduler._grouping = grouping = Grouping(core)
    told = runner_output({})
    attach_report(told, Report(kv_cache_group=0, token_bytes=4096))
    grouping.step_ended(told)
    found, orders, schedule, group = [], [[]], scheduler.schedule, grouping.step_scheduled

    def noted(output: Any) -> None:
        orders.append(list(output.num_scheduled_tokens))
        group(output)

    def checked(*args: Any, **more: Any) -> Any:
        output = schedule(*args, **more)
        assert sum(output.num_scheduled_tokens.values()) == output.total_num_scheduled_tokens
        groups = groups_of(output)
        found.append(groups)
        _check(scheduler, output, groups, orders[-1])
        return output

    scheduler.schedule, grouping.step_scheduled = checked, noted
    return found


def _check(scheduler: Any, output: Any, groups: Any, order: list[str]) -> None:
    """Raise AssertionError unless the first rows of a step share what it says, and no way saves more."""
    from forkjoin_scheduler.policy.shared_prefixes import SharedPrefixes

    (manager,) = scheduler.kv_cache_manager.coordinator.single_type_managers
    size, anew, blocks = manager.block_size, SharedPrefixes(), {}
    alike = _alike(output, 1 + scheduler.num_spec_tokens)
    for row, num in output.num_scheduled_tokens.items():
        blocks[row] = [b.block_id for b in manager.req_to_blocks[row]]
        computed = scheduler.requests[row].num_computed_tokens - num
        if row in alike:
            anew.add(row, blocks[row][: computed // size])
    saved = 0 if groups is None else groups.saved_tokens
    assert saved == size * sum(group.num_saved for group in anew.groups())
    rows = iter(output.num_scheduled_tokens.items())
    for num_rows, tokens in zip(*((groups.num_rows, groups.num_tokens) if groups else ((), ())), strict=True):
        of_group = list(islice(rows, num_rows))
        assert [row for row in order if row in dict(of_group)] == [row for row, _ in of_group]
        assert num_rows > 1
        assert all(num == groups.num_queries for _, num in of_group)
        assert len({tuple(blocks[row][: tokens // size]) for row, _ in of_group}) == 1
        assert all(scheduler.requests[row].num_computed_tokens - num >= tokens > 0 for row, num in of_group)


def _alike(output: Any, most: int) -> list[str]:
    """Of the rows with a token and drafts or none: the first in vLLM's order, and those like it."""
    from vllm.v1.worker.gpu.model_runner import sort_batch_req_ids

    scheduled, drafts = output.num_scheduled_tokens, output.scheduled_spec_decode_tokens
    decoding = {row: num for row, num in scheduled.items() if num == 1 + len(drafts.get(row, ()))}
    in_order = sort_batch_req_ids(decoding, drafts, most)
    return [row for row in in_order if decoding[row] == decoding[in_order[0]]]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("name", ["threadweaver", "multiverse"])
def test_whatever_happens_groups_share_blocks_that_were_computed_before(model_of, name):
    """Preemptions, aborts, drafts, stitched contexts, prompts in chunks and hits on what a step computes."""
    from tests.engine.random_drive import Drive

    steps = drafted = 0
    for kind, seed in product(("mixed", "pressure", "resets"), range(8)):
        drive = Drive.named(name, kind, seed, model_of(name))
        found = _groups(drive._scheduler)
        drive.run()
        steps += sum(groups is not None for groups in found)
        drafted += sum(groups is not None and groups.num_queries > 1 for groups in found)
    assert steps - drafted > 20
    assert drafted > 20


@pytest.fixture
def family() -> Callable[..., Any]:
    """A request with four branches after a prompt of three blocks and a half."""
    from tests.engine.by_hand import ByHand

    def start(*, is_async: bool = False) -> Any:
        hand = ByHand(load("explicit"), EMBEDDED_MODEL, is_async=is_async, filler="y")
        hand.add("r", "q" * 56, forkjoin={"branches": [{"text": text} for text in "abcd"]})
        return hand

    return start


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_the_threads_of_a_fork_are_one_group_and_stand_first(family, is_async):
    hand = family(is_async=is_async)
    found = _groups(hand.scheduler)
    hand.steps_until(lambda: hand.decodes("r#3"))
    hand.step(3)
    assert (found[-1].num_rows, found[-1].num_tokens) == ((4,), (48,))
    assert found[-1].saved_tokens == 3 * 48


def test_what_workers_grouped_is_told_the_front_end(family):
    from forkjoin_scheduler.vllm_seam.grouped.handing import Report, attach_report

    hand = family()
    _groups(hand.scheduler)
    update = hand.scheduler.update_from_output

    def reported(output: Any, of_model: Any) -> Any:
        attach_report(of_model, Report(0, 4096, rows=4, saved_tokens=144))
        return update(output, of_model)

    hand.scheduler.update_from_output = reported
    for index in range(4):
        hand.say(f"r#{index}", "yyy<|end|>")
    hand.finish()
    told = hand.events("grouped")
    assert sum(event["rows"] for event in told) == 4 * hand.num_steps
    assert sum(event["saved_tokens"] for event in told) == 144 * hand.num_steps


@pytest.mark.parametrize(
    ("setting", "num_bytes", "is_whole", "are_sent"),
    [
        ("0", 1, False, True),
        ("144", 1, False, True),
        ("145", 1, False, False),
        ("145", 1, True, False),
        ("auto", 1, False, False),
        ("auto", 50_000_000 // 144 + 1, False, True),
        ("auto", 50_000_000 // 144, False, False),
        ("auto", 17_000_000 // 144 + 1, True, True),
        ("auto", 17_000_000 // 144, True, False),
    ],
)
def test_groups_are_sent_where_they_save_enough(family, setting, num_bytes, is_whole, are_sent):
    from forkjoin_bench.vllm_seam.fed import runner_output
    from forkjoin_scheduler.vllm_seam.grouped.handing import Report, attach_report, groups_of
    from forkjoin_scheduler.vllm_seam.grouped.ordering import Grouping

    hand = family()
    core = hand.scheduler._core
    core.settings = core.settings.model_copy(update={"grouped_attention": setting})
    hand.scheduler._grouping = Grouping(core)
    sent, begin = [], hand.begin

    def seen(output: Any) -> Any:
        sent.append(groups_of(output))
        return begin(output)

    hand.begin = seen
    hand.steps_until(lambda: hand.decodes("r#3"))
    assert not any(sent), "no worker has said that it can"
    told = runner_output({})
    attach_report(told, Report(0, num_bytes, is_whole=is_whole))
    hand.scheduler._grouping.step_ended(told)
    hand.step(2)
    assert (sent[-1] is not None) is are_sent


def test_order_alone_puts_siblings_first_and_sends_nothing(family):
    from forkjoin_scheduler.vllm_seam.grouped.handing import groups_of
    from forkjoin_scheduler.vllm_seam.grouped.ordering import Grouping

    hand = family()
    hand.step()
    hand.add("other", "p" * 40)
    hand.add("again", "q" * 56)  # shares the prompt of the family
    core = hand.scheduler._core
    core.settings = core.settings.model_copy(update={"grouped_attention": "order"})
    hand.scheduler._grouping = Grouping(core)
    outputs, begin = [], hand.begin

    def seen(output: Any) -> Any:
        outputs.append((list(output.num_scheduled_tokens), groups_of(output)))
        return begin(output)

    hand.begin = seen
    hand.steps_until(lambda: hand.decodes("r#3") and hand.decodes("again"))
    hand.step(2)
    rows, groups = outputs[-1]
    assert groups is None
    assert rows[-1] == "other"
    assert {*rows[:-1]} == {"r#0", "r#1", "r#2", "r#3", "again"}


def test_an_error_in_it_ends_grouping_and_no_request(family, monkeypatch):
    from forkjoin_scheduler.policy.shared_prefixes import SharedPrefixes

    hand = family()
    _groups(hand.scheduler)
    hand.allowed_errors.add("group")
    monkeypatch.setattr(SharedPrefixes, "drop", lambda *_: 1 / 0)
    for index in range(4):
        hand.say(f"r#{index}", "yyy<|end|>")
    with monkeypatch.context() as patch:  # from then on nothing is sent, and the check would find that wrong
        patch.setattr(sys.modules[__name__], "_check", lambda *_: None)
        hand.finish()
    assert hand.scheduler._grouping is None
    assert [event["where"] for event in hand.events("internal_error")] == ["group"]


CASES = [f"{mode}-{join}" for mode in ("sync", "async") for join in ("reprefill", "stitch")]
CASES += ["async-stitch-full"]


@pytest.mark.parametrize("case", CASES)
def test_an_engine_answers_the_same_with_grouped_attention_and_reads_less(case):
    """vLLM's V2 runner and FlashAttention on the CPU, on a stand-in of its kernels; full: of CUDA graphs, too."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.grouped_case", *case.split("-")],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("CASE "))
    found = json.loads(line.removeprefix("CASE "))
    assert found["differ_at"] == []
    assert found["max_delta"] < 1e-3
    assert found["returned"]
    assert found["read"] < 0.9 * found["read_ungrouped"]
    assert found["saved"] > 0
    replayed = found["replayed"]
    assert bool(replayed.get("GroupedDescriptor")) is case.endswith("full")
    assert found["differs_if_unread"], "the control, in which shared blocks are left unread, was not seen"
