"""What vLLM's kernels for CPUs compute without any fork: rotations make MLA and LFM2 inexact there, not convolutions.

Where the test with a dimension of heads fails, vLLM has mended its fault: drop ``shapes.ROTATED``, and what docs/compatibility.md says
of it.
"""

from __future__ import annotations

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.mamba.ops.cpu.causal_conv1d import (
    causal_conv1d_fn_cpu,
    causal_conv1d_update_cpu,
)
from vllm.model_executor.layers.rotary_embedding import get_rope

HEADS, SIZE = 4, 32
CHANNELS, WIDTH, BLOCK = 128, 3, 3


def _convolved(values, states, weight, *, goes_on):
    """As vLLM prefills: [tokens, channels]."""
    return causal_conv1d_fn_cpu(
        values.T, weight, None, states, torch.tensor([0, len(values)]), torch.tensor([BLOCK]),
        torch.tensor([goes_on]), activation=None,
    ).T  # fmt: skip


def test_a_short_convolution_in_chunks_or_token_by_token_is_that_of_the_whole():
    values, weight = torch.randn(20, CHANNELS), torch.randn(CHANNELS, WIDTH)
    states = torch.zeros(3, BLOCK + 1, CHANNELS, WIDTH - 1)
    whole = _convolved(values, states[0], weight, goes_on=False)
    chunks = [_convolved(values[a:b], states[1], weight, goes_on=a > 0) for a, b in ((0, 7), (7, 8), (8, 20))]
    first = _convolved(values[:7], states[2], weight, goes_on=False)
    block = torch.tensor([BLOCK], dtype=torch.int32)
    decoded = [
        causal_conv1d_update_cpu(values[i : i + 1].clone(), states[2], weight, conv_state_indices=block)
        for i in range(7, 20)
    ]
    assert (torch.cat(chunks) - whole).abs().max() < 1e-5
    assert (torch.cat([first, *decoded]) - whole).abs().max() < 1e-5


@pytest.fixture(scope="module")
def rope():
    parameters = {"rope_type": "default", "rope_theta": 10000.0}
    with set_current_vllm_config(VllmConfig()):
        return get_rope(SIZE, max_position=64, rope_parameters=parameters, dtype=torch.float32)


def _off(rope, num_tokens, *, with_heads):
    """How far vLLM's kernel is off vLLM's own torch code, by head."""
    positions = torch.arange(num_tokens) + 3
    query = torch.randn(num_tokens, HEADS, SIZE, generator=torch.Generator().manual_seed(0))
    shaped = query if with_heads else query.flatten(1)
    expected, _ = rope.forward_native(positions, shaped.clone(), shaped.clone())
    found, _ = rope.forward_cpu(positions, shaped.clone(), shaped.clone())
    return (found - expected).view(query.shape).abs().amax((0, 2))


@pytest.mark.parametrize("num_tokens", [1, 7])
def test_vllms_kernel_for_cpus_rotates_queries_without_a_dimension_of_heads(rope, num_tokens):
    assert _off(rope, num_tokens, with_heads=False).max() < 1e-5


def test_with_one_it_rotates_one_head_of_one_token_and_of_several_none_as_it_should(rope):
    of_one = _off(rope, 1, with_heads=True)
    assert of_one[0] < 1e-5
    assert of_one[1:].min() > 1
    assert _off(rope, 7, with_heads=True).min() > 1


@pytest.mark.parametrize("num_tokens", [1, 40])
def test_int8_is_multiplied_exactly_by_weights_up_to_63(num_tokens):
    """Up to 127, CPUs without VNNI are off by a fifth of the result: they add products in pairs, in 16 bits."""
    weight = torch.randint(-63, 64, (HEADS * SIZE, CHANNELS), dtype=torch.int8)
    scales, inputs = torch.rand(len(weight), 1), torch.randn(num_tokens, CHANNELS)
    handler = ops.create_onednn_scaled_mm(weight.T, scales, torch.float32, True, False, 32)
    numbers, of_tokens, _ = ops.onednn_scaled_int8_quant(inputs)
    found = torch.empty(num_tokens, len(weight))
    ops.onednn_scaled_mm(handler, numbers, found, of_tokens, None, None, None)
    expected = (numbers.double() * of_tokens.view(-1, 1)) @ (weight.double() * scales).T
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
