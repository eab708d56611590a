"""What a fork and a join compute, read from the scheduler."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.engine

ROOT = "<think>\n<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: y</Outline>\n</Outlines>"


def _thread_steps(engine, index):
    return [(n, s[i]) for n, s in enumerate(engine.steps) for i in s if i.endswith(f"#{index}")]


def test_a_fork_computes_the_trigger_and_the_header_only_and_starts_in_the_next_step(engine):
    engine.steps.clear()
    params = engine.scripted(ROOT, {"1": "aaaa</Thread>", "2": "bb</Thread>"}, "</Parallel>\n")
    engine.run([engine.prompt("count")], params)
    header = len(engine.tokenizer.encode("\n<Thread>\n1:"))
    parent = [n for n, s in enumerate(engine.steps) for i in s if "#" not in i]
    trigger_step = parent[len(engine.tokenizer.encode(ROOT)) - 1]
    for index in (0, 1):
        first_step, num_tokens = _thread_steps(engine, index)[0]
        assert num_tokens == header + engine.num_late  # the trigger, sampled last
        assert first_step == trigger_step + 1


def test_a_join_prefills_the_later_threads_and_the_injected_text_only(engine):
    engine.steps.clear()
    params = engine.scripted(ROOT, {"1": "aaaa</Thread>", "2": "bbbbbbb</Thread>"}, "</Parallel>\n")
    (answer,) = engine.run([engine.prompt("count")], params)
    last_thread_step = _thread_steps(engine, 1)[-1][0]
    joined = engine.steps[last_thread_step + 1]
    later = len(engine.tokenizer.encode("<Thread>\n2:bbbbbbb</Thread>"))
    # and the end tag of thread 1, whose KV was never computed; the text after the join is "\n"
    assert list(joined.values()) == [1 + later + 1]
    assert answer.text == f"{ROOT}\n<Thread>\n1:aaaa</Thread><Thread>\n2:bbbbbbb</Thread>\n</Parallel>\n"


def test_threads_of_many_families_run_in_one_step(engine):
    engine.steps.clear()
    params = engine.scripted(ROOT, {"1": "aaaa</Thread>", "2": "bb</Thread>"}, "</Parallel>\n")
    engine.run([engine.prompt(f"family {i}") for i in range(8)], params)
    assert max(sum("#" in i for i in s) for s in engine.steps) == 16


def test_while_its_threads_run_a_parked_branch_holds_whole_blocks_only(engine):
    """Each thread has a copy of the partly filled one, and the branch goes on with the first's."""
    params = engine.scripted(ROOT, {"1": "aaaa</Thread>", "2": "bb</Thread>"}, "</Parallel>\n")
    prompt = engine.prompt("count slowly")
    fork_len = len(prompt) + len(engine.tokenizer.encode(ROOT))
    size = engine.scheduler.kv_cache_manager.coordinator.single_type_managers[0].block_size
    header = len(engine.tokenizer.encode("\n<Thread>\n1:"))
    assert 0 < fork_len % size < size - header - 4, "the threads must end in the block that they start in"
    engine.steps.clear()
    engine.add(prompt, params)
    engine.step_until(lambda: sum("#1" in i for s in engine.steps for i in s) == 2)
    used = engine.baseline["free_blocks"] - engine.snapshot()["free_blocks"]
    assert used == fork_len // size + 2
    engine.drain()
