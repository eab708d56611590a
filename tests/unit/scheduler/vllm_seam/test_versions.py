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
