"""The OS threads without which an engine core or a worker is dead, though its process lives.

vLLM gives each engine core a thread that reads its requests and one that writes its outputs, and each
worker one that hands its results on. An exception ends such a thread and nothing else: the engine goes
on computing what nobody gets to read, and every later request hangs.
"""

from __future__ import annotations

import logging
import os
import threading
from types import TracebackType

LOG = logging.getLogger("vllm.forkjoin.engine")

#: What runs in threads of these belongs to an engine core or a worker, and to no API server.
_VITAL = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")


def end_with_vital_threads() -> None:
    """End this process with status 1 when an exception ends a thread that it can't do without.

    Patch: ``threading.excepthook``.
    Upstream: vLLM starts these threads and looks at none of them again. Remove when it does.
    """
    other = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs) -> None:
        if not is_vital(args.exc_traceback) or args.exc_value is None:
            other(args)
            return
        name = args.thread.name if args.thread is not None else "a thread"
        LOG.critical("%s has died, and this process ends with it", name, exc_info=args.exc_value)
        os._exit(1)

    threading.excepthook = excepthook


def is_vital(traceback: TracebackType | None) -> bool:
    """Whether what was raised ended a thread of an engine core or a worker."""
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") in _VITAL:
            return True
        traceback = traceback.tb_next
    return False
