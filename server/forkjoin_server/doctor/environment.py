"""The machine and what is installed on it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from glob import glob
from importlib.metadata import metadata, version
from typing import TYPE_CHECKING

from forkjoin_scheduler.errors import UnsupportedEngine, UsageError
from forkjoin_server.doctor import prerequisites
from forkjoin_server.doctor.check import Check, fail, ok, size, warn
from forkjoin_server.vllm_seam.start.tracing import check_tracing
from forkjoin_server.vllm_seam.start.versions import check_version

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.cache.machine import Machine

#: Pythons that vLLM runs on, as pyproject.toml says.
OLDEST, TOO_NEW = (3, 11), (3, 14)
TCMALLOC = "libtcmalloc"
#: Where distributions put it.
TCMALLOC_FILES = ("/usr/lib/*/libtcmalloc_minimal.so.4", "/usr/lib/*/libtcmalloc.so.4")


def python() -> Check:
    """Whether vLLM runs on this Python."""
    seen = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if OLDEST <= sys.version_info[:2] < TOO_NEW:
        return ok("python", seen)
    return fail("python", seen, f"install one of {metadata('vllm-forkjoin')['Requires-Python']}")


def vllm() -> Check:
    """Whether there is a vLLM that we run on."""
    try:
        seen, untested = check_version()
    except UnsupportedEngine as error:
        return fail("vllm", str(error))
    ours = f"with vllm-forkjoin {version('vllm-forkjoin')}"
    if untested:
        return warn("vllm", f"{seen}, {ours}", f"try your model before you rely on it: {untested}")
    return ok("vllm", f"{seen}, {ours}")


def system(machine: Machine) -> Check:
    """Whether the operating system has what vLLM compiles its kernels with, and what it loads."""
    missing = prerequisites.to_compile()
    if machine.kind == "cpu" and not prerequisites.has_libnuma():
        missing.append(prerequisites.NUMA)
    if missing:
        return fail("system", prerequisites.sentence(missing))
    return ok("system", f"{prerequisites.compiler()} and Python's headers")


def processor(machine: Machine, num_workers: int) -> Check:
    """What the kernels run on."""
    if machine.kind != "cpu":
        seen = f"{machine.num_devices} x {machine.device}"
        if machine.num_devices < num_workers:
            sizes = ", ".join(f"--{kind}-parallel-size" for kind in ("tensor", "pipeline", "data"))
            to_do = f"give it {num_workers} or lower {sizes}"
            return fail("processor", seen, to_do)
        return ok("processor", seen)
    isas = f" with {', '.join(machine.isas)}" if machine.isas else ""
    seen = f"{machine.device}{isas}, {machine.num_cores} cores for this process"
    if machine.device == "x86" and "avx2" not in machine.isas:
        return fail("processor", seen, "vLLM's kernels for x86 need AVX2: take another machine")
    if machine.device == "x86" and "avx512f" not in machine.isas:
        return warn(
            "processor", seen, "without AVX-512 bfloat16 is slow: set --dtype float32 where memory allows"
        )
    if machine.num_cores < 2:
        return warn("processor", seen, "give it two, for the engine and the server before it")
    return ok("processor", seen)


def preload(environ: Mapping[str, str]) -> Check:
    """Whether a CPU's workers allocate as fast as they can; vLLM preloads it where its wheel has it."""
    if TCMALLOC in environ.get("LD_PRELOAD", ""):
        return ok("preload", f"{TCMALLOC} is preloaded")
    found = next((path for pattern in TCMALLOC_FILES for path in glob(pattern)), None)
    to_do = f"set LD_PRELOAD={found}" if found else "install libtcmalloc-minimal4 and set LD_PRELOAD to it"
    return warn("preload", f"no {TCMALLOC}, without which workers on CPUs are slower", to_do)


def traces(args: argparse.Namespace) -> Check:
    """Whether traces can be made as asked."""
    try:
        check_tracing(args)
    except UsageError as error:
        return fail("traces", str(error))
    return ok("traces", f"to {args.otlp_traces_endpoint}")


def memory(machine: Machine, needed_bytes: int) -> Check:
    """Whether what a worker takes at start is there."""
    needed, available = size(needed_bytes), size(machine.available_bytes)
    seen = f"{available} free of {size(machine.total_bytes)}, {needed} needed"
    if needed_bytes > machine.available_bytes:
        lower = "--gpu-memory-utilization" if machine.kind != "cpu" else "VLLM_CPU_KVCACHE_SPACE (GiB)"
        return fail("memory", seen, f"stop what else runs, or lower {lower}")
    return ok("memory", seen)


def hub(model: str, environ: Mapping[str, str]) -> Check:
    """Where the model comes from: a folder, the hub's cache, or the hub."""
    if os.path.isdir(model):
        return ok("hub", "not needed, the model is a folder")
    if model.startswith(("/", ".", "~")):
        return fail("hub", f"there is no folder {model}", "correct the path, or mount it")
    from huggingface_hub import snapshot_download

    is_offline = environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        folder = snapshot_download(model, local_files_only=True)
    except Exception as error:  # of whatever kind the hub's client raises for a name or a missing file
        if is_offline:
            return fail(
                "hub",
                f"{model} is neither a folder nor in the cache, and HF_HUB_OFFLINE is set",
                "unset it, or download the model before",
            )
        reason = str(error).partition("\n")[0]
        return warn("hub", f"{model} is not in the cache ({reason})", "the server downloads it at start")
    return ok("hub", f"{model} is in the cache, {folder}")
