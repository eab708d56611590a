"""What a step reads, and how long that is expected to take, worked out by hand."""

from __future__ import annotations

import pytest

from forkjoin_bench.grouped.estimate import Geometry, Load, estimate


def test_a_familys_whole_blocks_are_read_once():
    load = Load(families=3, width=4, prefix=100, suffix=10)
    assert load.ungrouped == 3 * 4 * 110
    assert load.grouped(16) == 3 * (96 + 4 * 14)


def test_the_time_is_bytes_over_bandwidth():
    """8 threads on 4,096 tokens: 36,768 tokens of 147,456 bytes at 2.85 TB/s, and 8,096."""
    expected = estimate(Load(1, 8, 4096), Geometry())
    assert (expected.ungrouped, expected.grouped) == pytest.approx((1.904, 0.419 + 0.69), abs=1e-3)
    assert expected.cached == pytest.approx(1.904 / 2, abs=1e-3)
