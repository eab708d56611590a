from __future__ import annotations

import inspect

import pytest
from transformers import Qwen2Config
from vllm.model_executor.models import ModelRegistry
from vllm.transformers_utils import model_arch_config_convertor as vllms

from forkjoin_scheduler.vllm_seam.models.registering import (
    ARCHITECTURE,
    KnowsParaThinker,
    register_parathinker,
)


@pytest.mark.parametrize(
    ("architectures", "more", "known_as"),
    [
        (["Qwen2ForCausalLM"], {"max_segments": 32}, [ARCHITECTURE]),
        (["Qwen2ForCausalLM"], {}, ["Qwen2ForCausalLM"]),
        (["OtherForCausalLM"], {"max_segments": 32}, ["OtherForCausalLM"]),
        (None, {"max_segments": 32}, []),
    ],
    ids=["parathinker", "qwen2", "another", "part_of_another"],
)
def test_only_a_qwen2_with_path_embeddings_is_a_parathinker(architectures, more, known_as):
    config = Qwen2Config(architectures=architectures, **more)
    convertor = KnowsParaThinker(config, config)
    assert convertor.get_architectures() == known_as
    assert (config.architectures or []) == known_as


def test_vllm_finds_the_class_and_the_entry_is_one_that_it_leaves_out():
    """If this fails for the entry, vLLM has one for Qwen2 itself: ours must then extend it."""
    register_parathinker()
    assert ARCHITECTURE in ModelRegistry.get_supported_archs()
    assert vllms.MODEL_ARCH_CONFIG_CONVERTORS["qwen2"] is KnowsParaThinker
    assert '"qwen2"' not in inspect.getsource(vllms)
