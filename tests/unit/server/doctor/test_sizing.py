"""What fits a GPU, by hand and by vLLM's own description of a KV cache."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.errors import UsageError
from forkjoin_server.cli import main
from forkjoin_server.doctor.kv_layout import DTYPE_BYTES, KVLayout, kv_layout
from forkjoin_server.doctor.sizing import GIB, Hardware, Shape, blocks_of, size_up
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.start.weights import counted_bytes, num_parameters
from scripts.sizing_page import PAGE, SHAPES, page

SMALL = {"num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 256, "vocab_size": 100}
SMALL |= {"intermediate_size": 64, "max_position_embeddings": 512, "torch_dtype": "bfloat16"}
LLAMA = SMALL | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MISTRAL = SMALL | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 2}
MLA = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "kv_lora_rank": 64,
    "q_lora_rank": None, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "num_key_value_heads": 8,
}  # fmt: skip
CONFIGS = {
    "as many KV heads": LLAMA,
    "grouped": LLAMA | {"num_key_value_heads": 2},
    "one KV head": LLAMA | {"num_key_value_heads": 1},
    "heads of their own size": LLAMA | {"num_key_value_heads": 2, "head_dim": 64},
    "latent": SMALL | MLA,
    "windowed": MISTRAL | {"sliding_window": 64},
}


# ---- the layout, against vLLM's ------------------------------------------------------------


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def described(request, tmp_path_factory):
    """A config, and what vLLM reads in it."""
    from vllm.engine.arg_utils import EngineArgs

    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(request.param))
    return request.param, EngineArgs(model=str(folder), skip_tokenizer_init=True).create_model_config()


@pytest.mark.parametrize("dtype", ["auto", "fp8"])
@pytest.mark.parametrize("num_gpus", [1, 2, 4])
def test_a_token_takes_the_bytes_that_vllms_spec_of_its_kv_cache_says(described, num_gpus, dtype):
    config, model = described
    layout = kv_layout(config)
    spec, num_layers = _vllms(model, num_gpus, dtype)
    of_block = layout.bytes_per_token(DTYPE_BYTES.get(dtype, 2), num_gpus) * spec.block_size
    assert of_block == spec.page_size_bytes * num_layers
    assert layout.window == model.get_sliding_window()


def _vllms(model, num_gpus, dtype):
    """VLLM's spec of a layer of ``model`` on one of ``num_gpus``, and the number of layers."""
    from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

    parallel = SimpleNamespace(
        tensor_parallel_size=num_gpus, pipeline_parallel_size=1, decode_context_parallel_size=1, rank=0
    )
    spec = (MLAAttentionSpec if model.use_mla else FullAttentionSpec)(
        block_size=16,
        num_kv_heads=model.get_num_kv_heads(parallel),
        head_size=model.get_head_size(),
        dtype=kv_cache_dtype_str_to_dtype(dtype, model),
    )
    return spec, model.get_num_layers(parallel)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": None}, "expected num_hidden_layers: a number from 1 on, got None"),
        ({"num_key_value_heads": [1, 2]}, r"expected num_key_value_heads: a number from 1 on, got \[1, 2\]"),
        ({"is_encoder_decoder": True}, "expected a decoder"),
        ({"mamba_d_state": 16}, "one state a token, got mamba_d_state"),
        ({"v_head_dim": 16}, "keys and values of one size, got 32 and 16"),
        (
            {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
            "got full_attention, sliding_attention",
        ),
        ({"layer_types": ["linear_attention"]}, "got linear_attention"),
        ({"sliding_window": 8, "use_sliding_window": True}, "expected layer_types"),
    ],
)
def test_what_can_not_be_worked_out_is_refused_with_what_to_do(change, said):
    with pytest.raises(UsageError, match=said) as refused:
        kv_layout(LLAMA | change)
    assert "start a server with it" in str(refused.value)


def test_a_window_that_is_switched_off_is_none():
    assert kv_layout(LLAMA | {"sliding_window": 8, "use_sliding_window": False}).window is None
    assert kv_layout(LLAMA | {"sliding_window": 8, "layer_types": ["full_attention"] * 4}).window is None
    assert kv_layout(LLAMA | {"sliding_window": 8, "layer_types": ["sliding_attention"] * 4}).window == 8


def test_of_a_model_that_also_sees_the_text_part_counts():
    assert kv_layout({"text_config": LLAMA, "vision_config": {}}) == kv_layout(LLAMA)


# ---- the weights ---------------------------------------------------------------------------


def test_counted_weights_are_those_of_the_file():
    from safetensors import safe_open

    with safe_open(EMBEDDED_MODEL / "model.safetensors", "pt") as file:
        of_file = sum(file.get_tensor(name).numel() for name in list(file.keys()))
    assert num_parameters(EMBEDDED_MODEL / "config.json") == of_file


def test_quantised_weights_are_not_counted():
    with pytest.raises(UsageError, match="give --weights-gib"):
        counted_bytes(Path("x"), LLAMA | {"quantization_config": {}})


def test_a_model_that_transformers_does_not_know_is_not_counted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "of another world"}))
    with pytest.raises(UsageError, match="give --weights-gib"):
        num_parameters(tmp_path / "config.json")


# ---- what fits -----------------------------------------------------------------------------


def test_a_family_by_hand():
    # 2 full blocks of the prompt; each thread: 3 tokens of the prompt's last block and 6 of its own, 3 blocks
    assert blocks_of(Shape(11, 5, 6), None, 4) == 2 + 5 * 3
    # of the prompt and of each thread the last 4 tokens, from anywhere in a block
    assert blocks_of(Shape(11, 5, 6), 4, 4) == 1 + 1 + 5 * (1 + 1)


def test_what_fits_by_hand():
    layout = KVLayout(num_layers=2, num_heads=4, head_size=8)
    hardware = Hardware(gpu_bytes=10_000, utilization=0.5, num_gpus=2)
    found = size_up(
        layout, dtype_bytes=2, weight_bytes=1001, hardware=hardware, shape=Shape(8, 2, 4), block_size=4
    )
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2
    assert found.weight_bytes_per_gpu == 501
    assert found.num_blocks == (5_000 - 501) // (128 * 4) - 1 == 7
    assert (found.blocks_per_family, found.blocks_unshared) == (4, 6)
    assert (found.num_families, found.num_families_unshared, found.threads_per_gpu) == (1, 1, 1.0)


def test_a_model_that_is_too_large_fits_nothing():
    found = size_up(
        KVLayout(1, 1, 1), dtype_bytes=2, weight_bytes=GIB, hardware=Hardware(GIB), shape=Shape(1, 1, 1)
    )
    assert (found.num_tokens, found.num_families) == (0, 0)


@given(
    prompt=st.integers(1, 200),
    threads=st.integers(1, 9),
    tokens=st.integers(1, 200),
    block=st.sampled_from([1, 4, 16]),
)
def test_a_family_takes_its_tokens_and_at_most_a_copied_block_and_a_rest_a_thread(
    prompt, threads, tokens, block
):
    shape = Shape(prompt, threads, tokens)
    blocks = blocks_of(shape, None, block)
    assert shape.num_tokens - block < blocks * block < shape.num_tokens + threads * 2 * block
    assert blocks <= threads * blocks_of(Shape(prompt, 1, tokens), None, block)
    assert blocks_of(shape, prompt + tokens, block) == blocks + threads + 1


# ---- the command ---------------------------------------------------------------------------


def test_the_command_says_what_fits_and_that_no_gpu_has_confirmed_it(capsys):
    main(["doctor", "sizing", "--gpu-gib", "1", "--threads", "8", "--kv-cache-dtype", "fp8"])
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["kv_token"] == "1,536 bytes on each GPU"
    assert said["model"] == "4 layers of 6 KV heads of 32"
    assert "no GPU has confirmed" in said["not_counted"]


def test_as_json_it_has_every_number(capsys):
    main(["doctor", "sizing", "--json", "--weights-gib", "2", str(SHAPES / "8b-qwen3.json")])
    found = json.loads(capsys.readouterr().out)
    assert found["kv_bytes_per_token"] == 147456
    assert found["num_families"] == found["num_blocks"] // found["blocks_per_family"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--threads", "0"], "--threads: expected a number from 1 on, got 0"),
        (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization: expected a part above 0"),
        (["--gpu-gib", "nan"], "--gpu-gib: expected a size above 0, got nan"),
        (["/nowhere"], "/nowhere: expected a model's config.json"),
        ([__file__], "expected a model's config.json"),
    ],
)
def test_what_can_not_be_is_one_sentence(argv, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "sizing", *argv])
    assert said in capsys.readouterr().err


def test_the_page_has_what_the_command_says():
    assert PAGE.read_text() == page(), "stale: run `make sizing-page`"
