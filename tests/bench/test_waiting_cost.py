"""What waits is measured beside the same that runs."""

from __future__ import annotations

import pytest

from forkjoin_bench import waiting_cost
from forkjoin_bench.vllm_seam.fed import Fed


@pytest.mark.engine
def test_as_many_decode_whatever_waits(monkeypatch):
    nums, step = [], Fed.step

    def noted(fed):
        num, seconds = step(fed)
        nums.append(num)
        return num, seconds

    monkeypatch.setattr(Fed, "step", noted)
    monkeypatch.setattr(waiting_cost, "NUM_STEPS", 60)
    assert waiting_cost.measure("fcfs", num_waiting=20) > 0
    assert set(nums[-60:]) == {8}, "two families of four threads"
