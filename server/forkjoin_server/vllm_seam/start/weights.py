"""How large a model's weights are: as the files beside its config say, or counted from the config."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forkjoin_scheduler.errors import UsageError

_ASK = "give --weights-gib"


@functools.cache
def num_parameters(config: Path) -> int:
    """The numbers in the weights of the model with this config.json, which is built without memory for them.

    Raises UsageError if it can't.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config))
    except Exception as error:  # of whatever kind transformers raises for a model that it does not know
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{config}: expected a model whose size can be counted, got {reason}: {_ASK}"
        ) from error
    # Shared ones once: tied embeddings are one parameter.
    return sum(parameter.numel() for parameter in model.parameters())


def counted_bytes(path: Path, config: Mapping[str, Any]) -> int:
    """Bytes of the weights, at two bytes a number as GPUs serve them. Raises UsageError if quantised."""
    if "quantization_config" in config:
        raise UsageError(f"{path}: expected weights that are not quantised, or their files beside it: {_ASK}")
    return 2 * num_parameters(path)
