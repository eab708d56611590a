"""The device that operations run on, and what a report says of it."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def use_device(name: str | None) -> torch.device:
    """The device ``name``, by default a GPU if torch sees one, else the CPU. Raises what torch raises.

    It becomes the current one: a graph that is captured, a sleep and a stream are of the current device.
    """
    found = torch.zeros(1, device=name or ("cuda" if torch.cuda.is_available() else "cpu"))
    found.cpu()  # waits: a GPU that this torch has no kernels for says so here
    if found.device.type == "cuda":
        torch.cuda.set_device(found.device)
    return found.device


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of ``array`` on ``device``, as vLLM makes it: queued on the current stream."""
    host = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True, copy=True)


def facts(device: torch.device) -> dict[str, str]:
    """Versions and the device, for a reader who can't look at the machine."""
    known = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "cuda": str(torch.version.cuda or torch.version.hip),
            "driver": _driver(),
        }
    return known


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        seen = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown (no nvidia-smi)"
    return seen.splitlines()[0].strip() if seen.strip() else "unknown"
