"""What vLLM would run on, as plain facts, without starting it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from vllm.platforms import current_platform
from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info


@dataclass(frozen=True)
class Machine:
    """A machine's CPUs or accelerators, and what one worker of vLLM's finds there."""

    #: vLLM's name of the platform: cpu, cuda, rocm, …
    kind: str
    #: The processor, or the accelerator's name.
    device: str
    num_devices: int
    #: Of one device; of one memory node where that is a CPU.
    total_bytes: int
    available_bytes: int
    num_cores: int
    #: Instruction sets of an x86 CPU that vLLM has kernels for, the best last.
    isas: tuple[str, ...] = ()


def machine() -> Machine:
    """The machine that this process runs on."""
    kind, num_cores = current_platform.device_type, len(os.sched_getaffinity(0))
    if kind != "cpu":
        total = current_platform.get_device_total_memory()
        free = torch.cuda.mem_get_info()[0] if current_platform.is_cuda_alike() else total
        num_devices = torch.accelerator.device_count()
        return Machine(kind, current_platform.get_device_name(), num_devices, total, free, num_cores)
    node = get_memory_node_info(get_allowed_cpu_list()[0].numa_node)
    return Machine(
        kind,
        current_platform.get_cpu_architecture().name.lower(),
        1,
        node.total_memory,
        node.available_memory,
        num_cores,
        _isas(),
    )


def _isas() -> tuple[str, ...]:
    """As the kernel names them; on other processors vLLM's kernels need nothing more than the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return ()
    return tuple(isa for isa in ("avx2", "avx512f", "amx_tile") if isa in flags)
