"""The model: what vLLM makes of its config, and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forkjoin_server.doctor.check import Check, fail, ok, size, warn

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def weight_bytes(model: str) -> int:
    """Bytes of the weights in the folder of ``model``, or in the hub's cache; 0 if there are none yet."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(model, local_files_only=True))
        except Exception:  # of whatever kind: it is not there yet, which `hub` tells
            return 0
    by_kind = {kind: sum(f.stat().st_size for f in folder.glob(f"*{kind}")) for kind in WEIGHTS}
    # Some repositories hold the same weights in two formats; vLLM takes the first of these.
    return next((num_bytes for num_bytes in by_kind.values() if num_bytes), 0)


def model(vllm_config: Any, num_bytes: int) -> Check:
    """What will be served."""
    config = vllm_config.model_config
    dtype = str(config.dtype).removeprefix("torch.")
    seen = (
        f"{config.architecture}, {dtype}, {size(num_bytes)} of weights, up to {config.max_model_len} tokens"
    )
    if config.using_transformers_backend():
        return warn(
            "model", seen, "vLLM has no kernels of its own for it, and runs it by transformers: slower"
        )
    if not num_bytes and Path(config.model).is_dir() and vllm_config.load_config.load_format != "dummy":
        return fail("model", seen, f"put the weights ({', '.join(WEIGHTS)}) beside config.json")
    return ok("model", seen)
