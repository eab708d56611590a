"""What the log says when a server ends: one line of ours, in the place of a line for each of vLLM's steps."""

from __future__ import annotations

import logging

#: The loggers that tell each step, in every process of a server.
LOGGERS = (
    "uvicorn.error",
    "vllm.entrypoints.launchers.launcher",
    "vllm.v1.engine.core",
    "vllm.v1.engine.core_client",
    "vllm.v1.engine.utils",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.utils",
)

#: How such a line begins.
STEPS = (
    "[shutdown] ",
    "Parent process exited, terminating worker queues",
    "Shutting down",
    "Waiting for application shutdown.",
    "Application shutdown complete.",
    "Finished server process",
)


class LeavesOutSteps(logging.Filter):
    """Drops these lines of level INFO, unless vLLM is to log everything (``VLLM_LOGGING_LEVEL=DEBUG``)."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_step = record.levelno == logging.INFO and str(record.msg).startswith(STEPS)
        return not is_step or logging.getLogger("vllm").isEnabledFor(logging.DEBUG)


_LEAVES_OUT_STEPS = LeavesOutSteps()


def leave_out_shutdown_steps() -> None:
    """Leave these lines out of what this process logs; once is as good as twice."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_LEAVES_OUT_STEPS)
