"""Which vLLM is installed."""

from __future__ import annotations

from forkjoin_scheduler.errors import UnsupportedEngine


def check_version() -> None:
    """Raise UnsupportedEngine if vLLM can't be imported, or is of another version."""
    try:
        from forkjoin_scheduler.vllm_seam import compat
    except ImportError as error:
        raise UnsupportedEngine(
            f"vLLM can't be imported ({error}): install vllm-forkjoin[cuda] for GPUs or "
            "vllm-forkjoin[cpu] for CPUs, which bring vLLM 0.32"
        ) from error
    except (RuntimeError, OSError) as error:
        # vLLM uses these three for images, audio and video only; PyPI has them for a torch with CUDA.
        raise UnsupportedEngine(
            f"vLLM can't be imported ({error}): if torch is a CPU build, run "
            "pip uninstall torchvision torchaudio torchcodec, which are built for another"
        ) from error
    compat.check_version()
