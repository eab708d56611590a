"""Requests with a seed whose prompt is computed in parts, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def keep_seeds_of_partial_prompts() -> None:
    """Take back, on a CPU, what is sampled where the prompt isn't computed whole yet.

    Patch: ``CPUModelRunner._sample`` and ``_bookkeeping_sync``.
    Symptom without it: ``RuntimeError: CPU Generator does not use offset`` ends the worker, and the server
    with it, at the first request with a seed whose prompt is longer than a step, or that is computed again
    in parts.
    Upstream: vLLM takes a sample back by the generator's offset, which CUDA's have only. So in stock ``vllm
    serve``, too. Remove when its CPU runner does it otherwise.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    sample, bookkeep = CPUModelRunner._sample, CPUModelRunner._bookkeeping_sync

    def sampled(self: Any, *args: Any, **more: Any) -> Any:
        before = [(generator, generator.get_state()) for generator in _discarded(self).values()]
        output = sample(self, *args, **more)
        for generator, state in before:
            generator.set_state(state)
        return output

    def bookkept(self: Any, *args: Any, **more: Any) -> Any:
        with _hidden(self.input_batch.generators, _discarded(self)):
            return bookkeep(self, *args, **more)

    setattr(CPUModelRunner, "_sample", sampled)  # noqa: B010
    setattr(CPUModelRunner, "_bookkeeping_sync", bookkept)  # noqa: B010


def _discarded(runner: Any) -> dict[int, torch.Generator]:
    """The generators of the rows whose sample this step discards, by row."""
    is_discarded = runner.discard_request_mask.np[: runner.input_batch.num_reqs]
    return {row: g for row, g in runner.input_batch.generators.items() if is_discarded[row]}


@contextmanager
def _hidden(generators: dict[int, torch.Generator], hidden: dict[int, torch.Generator]) -> Iterator[None]:
    """``generators`` without those, for a while."""
    for row in hidden:
        del generators[row]
    try:
        yield
    finally:
        generators.update(hidden)
