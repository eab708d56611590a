"""What a repetition penalty counts, in both of vLLM's model runners."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from forkjoin_scheduler.vllm_seam import repetition

VOCAB = 8
PENALISED = SamplingParams(repetition_penalty=2.0)


@pytest.fixture
def batch(monkeypatch):
    """Of the first runner, with room for four requests."""
    for name in ("add_request", "_make_prompt_token_ids_cpu_tensor"):
        monkeypatch.setattr(InputBatch, name, getattr(InputBatch, name))  # restored behind the test
    repetition._patch_first_runner(InputBatch)
    return InputBatch(
        max_num_reqs=4,
        max_model_len=16,
        max_num_batched_tokens=16,
        device=torch.device("cpu"),
        vocab_size=VOCAB,
        block_sizes=[4],
        max_num_blocks_per_req=[4],
    )


def add(batch: InputBatch, req_id: str, prompt: list[int], params: SamplingParams, wrote: list[int]) -> None:
    request = CachedRequestState(
        req_id=req_id,
        prompt_token_ids=prompt,
        mm_features=[],
        sampling_params=params,
        generator=None,
        block_ids=([0],),
        num_computed_tokens=0,
        output_token_ids=wrote,
    )
    batch.add_request(request)


def logits(batch: InputBatch) -> list[list[float]]:
    """Ones, penalised."""
    from vllm.v1.sample.ops.penalties import apply_all_penalties

    batch.refresh_metadata()
    of = batch.sampling_metadata
    ones = torch.ones(batch.num_reqs, VOCAB)
    apply_all_penalties(
        ones,
        of.prompt_token_ids,
        of.presence_penalties,
        of.frequency_penalties,
        of.repetition_penalties,
        of.output_token_ids,
    )
    return ones.tolist()


def halved(*tokens: int) -> list[float]:
    return [0.5 if token in tokens else 1.0 for token in range(VOCAB)]


def test_a_request_that_counts_its_output_is_penalised_for_that_only(batch):
    add(batch, "plain", [1, 2], PENALISED, [3])
    add(batch, "thread", [1, 2, 4], repetition.counting_output(PENALISED), [3, 2])
    assert logits(batch) == [halved(1, 2, 3), halved(2, 3)]


def test_what_a_request_counts_goes_with_it_and_not_with_its_row(batch):
    add(batch, "thread", [1, 2], repetition.counting_output(PENALISED), [3])
    add(batch, "plain", [4], PENALISED, [5])
    batch.remove_request("thread")
    batch.condense()
    assert logits(batch) == [halved(4, 5)]
    add(batch, "thread", [1, 2], PENALISED, [3])
    assert logits(batch) == [halved(4, 5), halved(1, 2, 3)]


def test_the_request_itself_is_left_as_it_was():
    params = SamplingParams(extra_args={"mine": 1})
    assert repetition.counts_output(repetition.counting_output(params))
    assert not repetition.counts_output(params)
    assert not repetition.counts_output(None)
    assert params.extra_args == {"mine": 1}


class Penalties:
    """The second runner's, as far as prompts go: a row of bits for each request that has begun."""

    def __init__(self) -> None:
        self.prompt_bin_mask = torch.zeros(4, 1, dtype=torch.int32)
        self._new_penalties_reqs: list[int] = []

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self._new_penalties_reqs.append(req_idx)
        return True

    def apply_staged_writes(self) -> None:
        self.prompt_bin_mask[self._new_penalties_reqs] = 0b110
        self._new_penalties_reqs.clear()


def test_the_second_runner_counts_no_prompt_of_a_request_that_counts_its_output():
    repetition._patch_second_runner(Penalties)
    penalties = Penalties()
    penalties.add_request(0, PENALISED)
    penalties.add_request(2, repetition.counting_output(PENALISED))
    penalties.apply_staged_writes()
    assert penalties.prompt_bin_mask.flatten().tolist() == [0b110, 0, 0, 0]
    penalties.add_request(2, PENALISED)
    penalties.apply_staged_writes()
    assert penalties.prompt_bin_mask.flatten().tolist() == [0b110, 0, 0b110, 0]


def test_what_is_patched_is_there():
    """Fails when vLLM calls it otherwise."""
    from vllm.v1.worker.gpu.sample.penalties import PenaltiesState

    assert repetition._patch_second_runner(SimpleNamespace(**vars(PenaltiesState))) is None
    source = PenaltiesState.apply_staged_writes.__code__.co_names
    assert {"_new_penalties_reqs", "prompt_bin_mask"} <= set(source)
