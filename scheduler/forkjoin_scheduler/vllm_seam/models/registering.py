"""Registers our model classes with vLLM. Imports none of them, since every process of vLLM runs this."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models import ModelRegistry
from vllm.transformers_utils.model_arch_config_convertor import (
    MODEL_ARCH_CONFIG_CONVERTORS,
    ModelArchConfigConvertorBase,
)

ARCHITECTURE = "ParaThinkerForCausalLM"
CLASS = f"forkjoin_scheduler.vllm_seam.models.parathinker:{ARCHITECTURE}"
#: The key in a checkpoint's config that ParaThinker adds to Qwen2's: how many path embeddings each layer has.
NUM_ROWS = "max_segments"


class KnowsParaThinker(ModelArchConfigConvertorBase):
    """Gives ParaThinker's checkpoints an architecture of their own. Other Qwen2 checkpoints stay as they are.

    ParaThinker's code is a changed Qwen2, so its checkpoints name the architecture Qwen2ForCausalLM.
    """

    def __init__(self, hf_config: Any, *args: Any, **kwargs: Any) -> None:
        is_qwen2 = getattr(hf_config, "architectures", None) == ["Qwen2ForCausalLM"]
        if is_qwen2 and hasattr(hf_config, NUM_ROWS):
            hf_config.architectures = [ARCHITECTURE]
        super().__init__(hf_config, *args, **kwargs)


def register_parathinker() -> None:
    """Let vLLM load checkpoints of ParaThinker.

    Patch: ``MODEL_ARCH_CONFIG_CONVERTORS["qwen2"]``, an entry that vLLM leaves out.
    Symptom without it: Qwen2's class loads the checkpoint and fails, since it has no path embeddings.
    Upstream: vLLM has such entries for variants of its own models, and no way to register one. Remove when it
    has.
    """
    ModelRegistry.register_model(ARCHITECTURE, CLASS)
    MODEL_ARCH_CONFIG_CONVERTORS.setdefault("qwen2", KnowsParaThinker)
