"""Every Python process of the soaked server begins with this: at SIGUSR2 it says how much memory it has in use.

That is what was allocated and not freed: by C and, where PYTHONMALLOC is ``malloc``, by Python.
"""

import ctypes
import gc
import os
import signal
from types import FrameType


class _Mallinfo2(ctypes.Structure):
    """glibc's, of all arenas together."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _Mallinfo2


def _say(signum: int, frame: FrameType | None) -> None:
    gc.collect()
    info = _libc.mallinfo2()
    path = os.path.join(os.environ["SOAK_MEMORY"], str(os.getpid()))
    with open(path + ".part", "w") as file:
        file.write(str(info.uordblks + info.hblkhd))
    os.rename(path + ".part", path)


signal.signal(signal.SIGUSR2, _say)
