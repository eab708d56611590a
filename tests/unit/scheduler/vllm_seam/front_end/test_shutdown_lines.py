from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

from forkjoin_scheduler.vllm_seam.front_end.shutdown_lines import LOGGERS, STEPS, LeavesOutSteps


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("vllm.x", level, "a_file.py", 1, text, None, None)


@pytest.mark.parametrize(
    ("level", "text", "is_logged"),
    [
        (logging.INFO, "[shutdown] API server: shutdown triggered", False),
        (logging.INFO, "Finished server process [%d]", False),
        (logging.INFO, "drained: all requests in flight were answered", True),
        (logging.WARNING, "[shutdown] Executor: workers still running after SIGTERM", True),
    ],
)
def test_each_step_of_a_shutdown_is_left_out_and_no_warning(level, text, is_logged):
    assert LeavesOutSteps().filter(record(level, text)) == is_logged


def test_whoever_logs_everything_sees_the_steps(caplog):
    caplog.set_level(logging.DEBUG, logger="vllm")
    assert LeavesOutSteps().filter(record(logging.INFO, STEPS[0]))


def test_each_logger_still_tells_steps_in_vllm_or_uvicorn():
    for name in LOGGERS:
        module = "uvicorn.server" if name == "uvicorn.error" else name
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).read_text()
        assert any(step in text for step in STEPS), name
