"""What vLLM on this machine needs from the operating system, and the command that installs it.

Standard library only: ``scripts/install`` runs this file before it downloads anything, and ``forkjoin
doctor`` imports it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_X_Y = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Prerequisite:
    """Something that the operating system's packages bring."""

    #: As a reader says it, after "needs".
    what: str
    why: str
    debian: str
    fedora: str


VENV = Prerequisite(
    "Python's venv module", "the packages are installed into .venv", f"python{_X_Y}-venv", "python3"
)
HEADERS = Prerequisite(
    "Python's headers (Python.h)",
    "PyTorch and Triton compile kernels for this machine",
    f"python{_X_Y}-dev",
    "python3-devel",
)
COMPILER = Prerequisite("a C++ compiler", HEADERS.why, "g++", "gcc-c++")
NUMA = Prerequisite("the library libnuma", "vLLM on a CPU loads it", "libnuma1", "numactl-libs")


def to_install() -> list[Prerequisite]:
    """What an installation of the CPU closure lacks."""
    has_venv = find_spec("venv") is not None and find_spec("ensurepip") is not None
    return [*([] if has_venv else [VENV]), *to_compile(), *([] if has_libnuma() else [NUMA])]


def to_compile() -> list[Prerequisite]:
    """What vLLM's kernels lack that are compiled when a server starts."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return [*([] if headers.exists() else [HEADERS]), *([] if compiler() else [COMPILER])]


def compiler() -> str | None:
    """The C++ compiler that PyTorch takes: that of the variable CXX, else g++. None: there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")


def has_libnuma() -> bool:
    """Whether the library loads."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


def command(missing: list[Prerequisite]) -> str:
    """What installs them on this distribution; for Debian and for Fedora if it is neither."""
    debian = "apt-get install " + " ".join(p.debian for p in missing)
    fedora = "dnf install " + " ".join(p.fedora for p in missing)
    if shutil.which("apt-get"):
        return debian
    return fedora if shutil.which("dnf") else f"{debian} (Debian, Ubuntu) or {fedora} (Fedora)"


def sentence(missing: list[Prerequisite]) -> str:
    """All that is missing, why it is needed and what to do about it."""
    reasons = dict.fromkeys(p.why for p in missing)
    needed = [" and ".join(p.what for p in missing if p.why == why) + f" ({why})" for why in reasons]
    return f"missing: {'; '.join(needed)}. Install with: {command(missing)}"


if __name__ == "__main__" and (_missing := to_install()):
    sys.exit(sentence(_missing))
