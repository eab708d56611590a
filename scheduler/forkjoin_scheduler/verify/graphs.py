"""Positions that are offset before a CUDA graph is replayed.

A graph is captured on a buffer. Each step writes the buffer, offsets it, and replays: so the graph must see
what was written last, and no offset may last into the next step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from forkjoin_scheduler.verify import rotation
from forkjoin_scheduler.verify.device import to_device
from forkjoin_scheduler.verify.result import Result, not_run

OPERATION = "offset before a CUDA graph"


def check(device: torch.device) -> Iterator[Result]:
    """A rotation replayed in three steps, the second without offsets, against the same without a graph."""
    if device.type != "cuda":
        yield not_run(OPERATION, "needs a GPU")
        return
    for dtype in rotation.DTYPES:
        yield from _replayed(device, dtype)


def _replayed(device: torch.device, dtype: str) -> Iterator[Result]:
    x = to_device(rotation.keys(dtype), device).to(rotation.DTYPES[dtype])
    slots, angles = to_device(rotation.rows(), device), rotation.angles_on(device)
    positions = torch.zeros_like(slots)

    def forward() -> torch.Tensor:
        return rotation.rotate(x, positions, "neox", angles)

    def prepare(runs: dict[str, list[tuple[int, int]]]) -> None:
        positions.copy_(slots)
        rotation.offset(positions, runs)

    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # as torch asks: warm up on another stream before a capture
        for _ in range(3):
            forward()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = forward()
    for step, runs in enumerate((rotation.RUNS, {}, rotation.RUNS)):
        prepare(runs)
        graph.replay()
        replayed = out.clone()
        off = float((replayed.double() - forward().double()).abs().max())
        name = "with offsets" if runs else "without, after a step with them"
        yield Result(OPERATION, f"step {step}, {name}, to eager", dtype, off, 0)
        if runs:
            off = rotation.off_by(replayed, dtype, "neox")
            yield Result(OPERATION, f"step {step}, {name}, to fp64", dtype, off, rotation.bound(dtype))
