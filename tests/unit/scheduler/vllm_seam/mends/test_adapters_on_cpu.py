"""On a CPU a token without an adapter gets nothing of those of others."""

from __future__ import annotations

import pytest
import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

from forkjoin_scheduler.vllm_seam.mends import adapters_on_cpu as mend

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the mend is for CPUs")

RANK, SIZE, PLACES, SCALE = 2, 6, 3, 0.5
#: Of four tokens the place of the adapter, or none.
ADAPTERS = [0, -1, 2, -1]


@pytest.fixture(scope="module", autouse=True)
def _mended():
    modules = [(module, name) for module in (lora_ops, punica_cpu) for name in mend.KERNELS]
    with pytest.MonkeyPatch.context() as patched:
        for module, name in modules:
            patched.setattr(module, name, getattr(module, name))  # to be restored
        mend.add_nothing_without_an_adapter()
        yield


@pytest.fixture(scope="module")
def wrapper():
    """As it is in a step with these tokens."""
    made = PunicaWrapperCPU(16, 16, "cpu")
    places = torch.tensor(ADAPTERS)
    for indices in (made._token_lora_indices, made._sampler_indices):
        indices[: len(places)] = places
    made.indices_len = [len(places)] * 4
    made._update_prefill_metadata(places)
    made.is_prefill = True
    return made


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _expected(inputs, shrink, expand, outputs):
    """Token by token."""
    rows = [
        y if at < 0 else y + SCALE * (expand[at, 0] @ (shrink[at, 0] @ x))
        for x, y, at in zip(inputs, outputs, ADAPTERS, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("layer", ["linear", "logits"])
def test_a_layer_adds_to_each_token_what_its_own_adapter_makes_of_it_and_else_nothing(wrapper, layer):
    inputs, outputs = _random(len(ADAPTERS), 5), _random(len(ADAPTERS), SIZE)
    shrink, expand = _random(PLACES, 1, RANK, 5), _random(PLACES, 1, SIZE, RANK)
    expected = _expected(inputs, shrink, expand, outputs)
    untouched = outputs[1].clone()
    if layer == "linear":
        wrapper.add_lora_linear(outputs, inputs, (shrink,), (expand,), SCALE, (SIZE,))
    else:
        wrapper.add_lora_logits(outputs, inputs, shrink, expand, SCALE)
    assert torch.equal(outputs[1], untouched)
    assert torch.allclose(outputs, expected)


def test_an_embedding_without_an_adapter_is_the_models(wrapper):
    inputs, expand = _random(len(ADAPTERS), RANK), _random(PLACES, 1, SIZE, RANK)
    outputs = torch.zeros(len(ADAPTERS), SIZE)
    wrapper.add_lora_embedding(outputs, inputs, expand)
    assert [bool(row.any()) for row in outputs] == [at >= 0 for at in ADAPTERS]


@pytest.mark.parametrize("name", mend.KERNELS)
def test_no_kernel_adds_the_last_adapter_to_tokens_without_one(name):
    for module in (lora_ops, punica_cpu):
        assert not mend.adds_the_last_adapter(getattr(module, name))


def test_kernels_that_look_for_none_themselves_stay_as_they_are():
    kernels = [getattr(lora_ops, name) for name in mend.KERNELS]
    mend.add_nothing_without_an_adapter()
    assert [getattr(lora_ops, name) for name in mend.KERNELS] == kernels
