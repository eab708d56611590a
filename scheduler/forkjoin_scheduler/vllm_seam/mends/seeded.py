"""Requests with a seed whose prompt is computed in parts, on a CPU, or that go on after a join."""

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


def seed_again_what_goes_on() -> None:
    """Let a request that comes back to the first model runner draw with the seed that it comes with.

    Patch: ``GPUModelRunner._update_streaming_request``, by which a parked request goes on.
    Symptom without it: the runner keeps the request's generator, so that the seed of what follows a join,
    which is derived from the request's, has no effect there. The second runner obeys it, as clients do that
    ask for each stretch of text by itself. A sample that is drawn again would be the generator's second.
    Upstream: vLLM's own streaming inputs keep their seed, and go on with their generator here as there.
    Remove when parked requests go on in another way.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    update = GPUModelRunner._update_streaming_request

    def updated(self: Any, req_id: str, new: Any) -> Any:
        before = self.requests[req_id]
        # Of a stock session's prompt only its length is left to compare: the list grows in place.
        seed, num_tokens = _seed(before.sampling_params), before.num_prompt_tokens
        state = update(self, req_id, new)  # what the runner keeps of the request
        now = _seed(state.sampling_params)
        is_drawn_again = now != seed or state.num_prompt_tokens == num_tokens
        if state.generator is not None and now is not None and is_drawn_again:
            state.generator = torch.Generator(device=self.device)
            state.generator.manual_seed(now)
        return state

    setattr(GPUModelRunner, "_update_streaming_request", updated)  # noqa: B010


def _seed(params: Any) -> int | None:
    return None if params is None else params.seed


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
