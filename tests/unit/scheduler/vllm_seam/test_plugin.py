from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import ctypes
from forkjoin_scheduler.vllm_seam.plugin import register
def may_use_amx():
    features = ctypes.c_ulong()
    assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(features)) == 0  # arch_prctl(ARCH_GET_XCOMP_PERM)
    return bool(features.value & 1 << 18)  # XTILEDATA
print(may_use_amx())
register()
print(may_use_amx())
"""


@pytest.mark.skipif("amx_tile" not in Path("/proc/cpuinfo").read_text(), reason="a CPU without AMX")
def test_a_process_of_vllms_may_use_amx_before_anything_has_asked():
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["False", "True"]
