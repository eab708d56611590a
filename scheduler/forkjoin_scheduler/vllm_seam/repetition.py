"""Repetition penalties that count what a branch has written itself, in the workers.

vLLM's repetition penalty counts the prompt of a request, too. A thread's prompt is the question and all that
its parent wrote. Where each thread is a request of its own, and a penalty counts outputs only, it counts what
the thread itself wrote since it started or joined last. The scheduler makes just that the output of a request
here, so all that is missing is to leave its prompt out.

Penalties of a request that does not ask for it count as in vLLM.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from vllm.sampling_params import SamplingParams

#: In a request's ``extra_args``, which vLLM hands on to its workers.
_KEY = "forkjoin_repetition_counts_output"


def counting_output(params: SamplingParams) -> SamplingParams:
    """``params`` whose repetition penalty counts no token of the prompt."""
    params = copy(params)
    params.extra_args = (params.extra_args or {}) | {_KEY: True}
    return params


def counts_output(params: SamplingParams | None) -> bool:
    """Whether ``params`` are such."""
    return params is not None and _KEY in (params.extra_args or {})


def leave_prompts_out_of_repetition() -> None:
    """Let requests that ask for it have repetition penalties that count their output only.

    Patch: ``InputBatch.add_request`` and ``_make_prompt_token_ids_cpu_tensor`` of the first model runner,
    ``PenaltiesState.add_request`` and ``apply_staged_writes`` of the second.
    Symptom without it: NPR's 1.02 inside steps also penalises the question and the plans.
    Upstream: no option says what the penalty counts. Remove when one does.
    """
    from vllm.v1.worker.gpu.sample.penalties import PenaltiesState
    from vllm.v1.worker.gpu_input_batch import InputBatch

    _patch_first_runner(InputBatch)
    _patch_second_runner(PenaltiesState)


def _patch_first_runner(batch: Any) -> None:
    add, make_tensor = batch.add_request, batch._make_prompt_token_ids_cpu_tensor

    def add_request(self: Any, added: Any) -> int:
        ids: set[str] = self.__dict__.setdefault("counting_output", set())
        (ids.add if counts_output(added.sampling_params) else ids.discard)(added.req_id)
        row: int = add(self, added)
        return row

    def make_prompt_token_ids(self: Any) -> Any:
        tokens = make_tensor(self)
        if ids := self.__dict__.get("counting_output"):
            ids.intersection_update(self.req_id_to_index)
            for row in (self.req_id_to_index[i] for i in ids):
                tokens[row] = self.vocab_size  # as vLLM pads
        return tokens

    batch.add_request = add_request
    batch._make_prompt_token_ids_cpu_tensor = make_prompt_token_ids


def _patch_second_runner(state: Any) -> None:
    add, write = state.add_request, state.apply_staged_writes

    def add_request(self: Any, req_idx: int, sampling_params: SamplingParams) -> bool:
        rows: set[int] = self.__dict__.setdefault("counting_output", set())
        (rows.add if counts_output(sampling_params) else rows.discard)(req_idx)
        is_used: bool = add(self, req_idx, sampling_params)
        return is_used

    def apply_staged_writes(self: Any) -> None:
        counting = self.__dict__.get("counting_output", ())
        rows = [row for row in self._new_penalties_reqs if row in counting]
        write(self)
        for row in rows:
            self.prompt_bin_mask[row].zero_()

    state.add_request = add_request
    state.apply_staged_writes = apply_staged_writes
