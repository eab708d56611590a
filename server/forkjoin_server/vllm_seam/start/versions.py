"""Which vLLM is installed."""

from __future__ import annotations

from forkjoin_scheduler.errors import UnsupportedEngine


def check_version() -> tuple[str, str | None]:
    """The installed version, and what of it no test has run.

    Raises UnsupportedEngine if it can't be imported, or is of a version that we do not run on.
    """
    try:
        from forkjoin_scheduler.vllm_seam import compat
    except ImportError as error:
        raise UnsupportedEngine(
            f"vLLM can't be imported ({error}): install vllm-forkjoin[cuda] for GPUs or "
            "vllm-forkjoin[cpu] for CPUs, which bring it"
        ) from error
    except (RuntimeError, OSError) as error:
        # vLLM uses these three for images, audio and video only; PyPI has them for a torch with CUDA.
        raise UnsupportedEngine(
            f"vLLM can't be imported ({error}): if torch is a CPU build, run "
            "pip uninstall torchvision torchaudio torchcodec, which are built for another"
        ) from error
    import vllm

    compat.check_version()
    return vllm.__version__, compat.untested()
