from __future__ import annotations

import pytest
import torch
from vllm import SamplingParams

from forkjoin_bench.inputs.script import Compiler, write_script
from forkjoin_bench.inputs.traces import make_samples
from forkjoin_bench.inputs.words import Words
from forkjoin_bench.vllm_seam import replay
from forkjoin_bench.vllm_seam.serving import SCRIPT_VARIABLE
from forkjoin_scheduler.dialects.files import load
from tests.unit.conftest import ByteTokenizer

EOS, VOCABULARY = 7, 400


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """Three samples of a prompt, and a script that has them."""
    tokenizer = ByteTokenizer(list(load("threadweaver").control_tokens))
    compiler = Compiler(tokenizer)
    compiled = [compiler.compile(f) for f in make_samples("families", 3, Words(tokenizer))]
    write_script(tmp_path / "script.json", compiled, EOS)
    monkeypatch.setenv(SCRIPT_VARIABLE, str(tmp_path / "script.json"))
    replay._script.cache_clear()
    yield compiled
    replay._script.cache_clear()


def written(prompt_ids: list[int], seed: int | None, *, temperature: float) -> list[int]:
    """What a request writes, up to the end of sequence."""
    processor = object.__new__(replay.Replay)  # without an engine's configuration
    force = processor.new_req_logits_processor(SamplingParams(temperature=temperature, seed=seed))
    output: list[int] = []
    while True:
        logits = force(prompt_ids, output, torch.zeros(VOCABULARY))
        (allowed,) = torch.isfinite(logits).nonzero(as_tuple=True)
        if len(allowed) != 1:
            return output
        if (token := int(allowed)) == EOS:
            return output
        output.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_request_writes_the_sample_that_its_seed_numbers(samples, temperature):
    texts = [written(samples[0].prompt_ids, seed, temperature=temperature) for seed in range(3)]
    assert texts == [sample.token_ids for sample in samples]


def test_a_request_without_a_seed_is_left_to_the_model(samples):
    assert written(samples[0].prompt_ids, None, temperature=0.0) == []


def test_a_thread_of_a_sample_writes_its_own_text_with_a_seed_of_its_own(samples):
    for sample in samples:
        (thread,) = [c for c in sample.contexts if c.digest == sample.forks[0].threads[0]]
        transcript = sample.prompt_ids + sample.token_ids  # which begins as the context of the first thread
        context = transcript[: thread.length]
        assert written(context, 12345, temperature=1.0) == list(thread.continuation)
