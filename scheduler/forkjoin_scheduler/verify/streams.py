"""In what order a GPU does what is queued: a copy sees what was queued before it on its stream.

A long sleep of the GPU stands before each write, so that a copy which is not ordered after it reads what was
there before. The control orders nothing, and must read that: else these checks could not fail here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from forkjoin_scheduler.tensors import slots
from forkjoin_scheduler.tensors.tokens import Int64s
from forkjoin_scheduler.verify.device import to_device
from forkjoin_scheduler.verify.kv import Memory, moved
from forkjoin_scheduler.verify.result import Result, not_run

OPERATION = "order on streams"
#: About 50 ms of a GPU of 2 GHz.
SLEEP_CYCLES = 100_000_000
LAYOUT = ("FLASH_ATTN", None)
MEMORY = Memory("LBNHC", "bf16", 16, 8, 128, num_blocks=64)


def check(device: torch.device) -> Iterator[Result]:
    """A write and a copy on one stream, on two that wait for each other, and many copies in a row."""
    if device.type != "cuda":
        yield not_run(OPERATION, "needs a GPU")
        return
    yield _after_a_write(device, "one stream", None, waits=True)
    yield _after_a_write(device, "a side stream that waits", torch.cuda.Stream(device), waits=True)
    control = _after_a_write(device, "control", torch.cuda.Stream(device), waits=False)
    if control.difference:
        yield Result(
            OPERATION, "control: a side stream that does not wait reads what was there", "bf16", 0, 0
        )
    else:
        yield not_run(
            OPERATION, "control: a stream that did not wait saw the write, so this shows little here"
        )
    yield _many(device)


def _orders(seed: int) -> Int64s:
    num_slots = MEMORY.num_blocks * MEMORY.block_size
    return np.random.default_rng(seed).permutation(num_slots)[:400].reshape(-1, 2)


def _copy(raw: torch.Tensor, orders: Int64s) -> None:
    slots.copy_slots([(slots.COPIERS[LAYOUT], view) for view in MEMORY.views(raw)], orders, to_device)


def _after_a_write(
    device: torch.device, name: str, stream: torch.cuda.Stream | None, *, waits: bool
) -> Result:
    before, written = MEMORY.random_bytes(1), MEMORY.random_bytes(2)
    raw, new, orders = to_device(before, device), to_device(written, device), _orders(3)
    main = torch.cuda.current_stream(device)
    copying = main if stream is None else stream
    with torch.cuda.stream(copying):  # load kernels now: later that could wait for the device
        _copy(to_device(before, device), orders)
    torch.cuda.synchronize(device)
    torch.cuda._sleep(SLEEP_CYCLES)
    raw.copy_(new)
    if waits:
        copying.wait_stream(main)
    with torch.cuda.stream(copying):
        _copy(raw, orders)
    main.wait_stream(copying)
    found = raw.cpu().numpy()
    wrong = np.count_nonzero(found != moved(LAYOUT, MEMORY, written, orders))
    return Result(OPERATION, f"a copy after a write, {name}", "bf16", float(wrong), 0)


def _many(device: torch.device) -> Result:
    """Copies queued while the GPU sleeps: each has slots of its own, whose host memory is freed at once."""
    expected = MEMORY.random_bytes(4)
    raw = to_device(expected, device)
    torch.cuda.synchronize(device)
    torch.cuda._sleep(SLEEP_CYCLES)
    for seed in range(50):
        _copy(raw, _orders(seed))
    for seed in range(50):
        expected = moved(LAYOUT, MEMORY, expected, _orders(seed))
    wrong = np.count_nonzero(raw.cpu().numpy() != expected)
    return Result(OPERATION, "50 copies in a row", "bf16", float(wrong), 0)
