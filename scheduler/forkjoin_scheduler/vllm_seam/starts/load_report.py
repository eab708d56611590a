"""What an engine reports to its front ends: its load, and how well admission foresees."""

from __future__ import annotations

from vllm.v1.engine import EngineCoreOutputs

from forkjoin_scheduler.publish.events import Admission, Load
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import drained
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_scheduler.vllm_seam.starts.admission_gate import AdmissionGate
from forkjoin_scheduler.vllm_seam.starts.waiting import Waiters


class LoadReport:
    """Owns what was sent last: it sends changes only."""

    def __init__(self, core: Core, gate: AdmissionGate, waits: Waiters, num_front_ends: int) -> None:
        self._core, self._gate, self._waits = core, gate, waits
        self._num_front_ends = num_front_ends
        self._seen = self._facts()
        self._last_emitted_load = _load(*self._seen)

    def emit(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Put into ``result``, by front end, what has changed in this step."""
        if (facts := self._facts()) != self._seen:
            self._seen = facts
            self._emit_load(_load(*facts), result)
        if self._gate.peak_ratios:
            self._emit_peaks(result)

    def _facts(self) -> tuple[int, int, float, float, float]:
        """What ``_load`` is made of: most steps change nothing of it."""
        admission = self._gate.admission
        return *self._waits.count(), admission.tokens.mean, admission.forks.mean, admission.width.mean

    def _emit_load(self, load: Load, result: dict[int, EngineCoreOutputs]) -> None:
        """Send the front ends the load: each refuses by it what would wait too long."""
        if load == self._last_emitted_load:
            return
        self._last_emitted_load = load
        packed = wire.pack("", [load], self._core.engine)
        for front_end in range(self._num_front_ends):
            result.setdefault(front_end, EngineCoreOutputs()).outputs.append(packed)

    def _emit_peaks(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Send one front end what admission expected of the requests that have ended, against what came."""
        peaks = Admission(peak_ratios=drained(self._gate.peak_ratios))
        result.setdefault(0, EngineCoreOutputs()).outputs.append(wire.pack("", [peaks], self._core.engine))


def _load(num_threads: int, num_requests: int, tokens: float, forks: float, width: float) -> Load:
    """How many threads and requests wait to run, and what is expected of one more."""
    return Load(
        threads=num_threads,
        requests=num_requests,
        expected_tokens=round(tokens),
        expected_threads=round(1 + forks * max(width - 1, 0), 1),
    )
