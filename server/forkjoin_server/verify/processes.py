"""Processes that verify something: each is a module with a file to write, and is heard when it wrote none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass

from forkjoin_scheduler.excerpt import cut

TIMEOUT_S = 1800
#: What is kept of a process's output, from its end.
LOG_CHARS = 20_000
#: What Python writes of the error that ends a process. Libraries of GPUs write more lines after it.
_ERROR = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*: \S")
#: How vLLM logs the same of an error in a worker, whose class the error in the engine does not say.
_REFUSED = "UnsupportedEngine: "


@dataclass(frozen=True)
class Ended:
    """A process that has ended: the line that says why, if it was an error, and all that it wrote."""

    complaint: str
    log: str

    @property
    def is_refused(self) -> bool:
        """Whether the engine did not start because it does not do what was asked."""
        return self.complaint.startswith(_REFUSED)


def run(what: str, module: str, argv: list[str]) -> Ended:
    """Run ``module`` in a process of its own; ``what`` it does is shown."""
    print(f"forkjoin: verifies: {what} …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", module, *argv]
    try:
        done = subprocess.run(  # noqa: S603
            command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        written = error.output or b""
        log = written if isinstance(written, str) else written.decode(errors="replace")
        return Ended(f"not over after {TIMEOUT_S} s", log[-LOG_CHARS:])
    return Ended(complaint_in(done.stdout) or f"exit status {done.returncode}", done.stdout[-LOG_CHARS:])


def complaint_in(output: str) -> str:
    """The line of ``output`` that says why a process ended; its last one if none is an error's."""
    lines = [line for line in output.splitlines() if line.strip()]
    refused = next((line for line in reversed(lines) if _REFUSED in line), "")
    if refused:
        return cut(refused[refused.index(_REFUSED) :], 500)
    errors = (line for line in reversed(lines) if _ERROR.match(line))
    return cut(next(errors, lines[-1] if lines else ""), 500)
