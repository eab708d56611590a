"""What differs between versions of vLLM is found in vLLM."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from forkjoin_scheduler.vllm_seam import versions


@pytest.mark.parametrize("name", versions.MOVED)
def test_what_has_moved_is_found_in_the_vllm_that_is_installed(name):
    assert callable(versions.find(name))


def test_a_name_is_looked_for_in_one_module_after_the_other(monkeypatch):
    """One is not there, the next has no such name."""
    monkeypatch.setitem(versions.MOVED, "sqrt", ("no_such_module", "os", "math"))
    assert versions.find("sqrt")(9) == 3


def test_a_name_that_no_module_has_is_named_with_all_of_them(monkeypatch):
    monkeypatch.setitem(versions.MOVED, "nope", ("no_such_module", "os"))
    with pytest.raises(ImportError, match=r"expected nope in one of no_such_module, os"):
        versions.find("nope")


@pytest.mark.parametrize(
    ("num_tokens", "told", "num_blocks"),
    [
        (8, {}, 2),
        (8, {"num_hash_lookahead_tokens": 0}, 2),
        (8, {"num_hash_lookahead_tokens": 1}, 1),
        (9, {"num_hash_lookahead_tokens": 1}, 2),
        (2, {"num_hash_lookahead_tokens": 3}, 0),
    ],
)
def test_a_block_counts_as_hashed_once_all_that_its_hash_covers_is_there(num_tokens, told, num_blocks):
    scheduler = SimpleNamespace(hash_block_size=4, **told)
    assert versions.num_hashed_blocks(scheduler, num_tokens) == num_blocks


def _paced(**changes):
    """A scheduler of 0.33 that holds prefills back for three steps after one with a prefill, the tenth."""
    decoding = SimpleNamespace(is_prefill_chunk=False)
    facts = {
        "running": [decoding], "prefill_capacity_bound": False, "local_prefill_interval": 4,
        "num_executed_steps": 10, "last_prefill_step": 10,
    }  # fmt: skip
    return SimpleNamespace(**facts | changes)


@pytest.mark.parametrize(
    ("changes", "is_between"),
    [
        ({}, True),
        ({"num_executed_steps": 12}, True),
        ({"num_executed_steps": 13}, False),
        ({"prefill_capacity_bound": True}, False),
        ({"running": [SimpleNamespace(is_prefill_chunk=True)]}, False),
        ({"local_prefill_interval": 1}, False),
    ],
    ids=str,
)
def test_prefills_are_held_back_until_the_interval_has_passed_while_others_decode(changes, is_between):
    assert versions.is_between_prefills(_paced(**changes), False) is is_between


@pytest.mark.parametrize("is_throttled", [True, False])
def test_a_scheduler_that_counts_no_steps_holds_prefills_back_when_the_engine_says_so(is_throttled):
    scheduler = _paced()
    del scheduler.local_prefill_interval, scheduler.num_executed_steps, scheduler.last_prefill_step
    assert versions.is_between_prefills(scheduler, is_throttled) is is_throttled
    with versions.prefills_beside_the_interval(scheduler):
        scheduler.prefill_capacity_bound = True
    assert not scheduler.prefill_capacity_bound
    assert not hasattr(scheduler, "local_prefill_interval")


def test_a_step_beside_the_interval_has_none_and_gives_it_back_whatever_happens():
    scheduler = _paced()

    def step():
        with versions.prefills_beside_the_interval(scheduler):
            raise ZeroDivisionError(scheduler.local_prefill_interval)

    with pytest.raises(ZeroDivisionError, match="1"):
        step()
    assert scheduler.local_prefill_interval == 4
