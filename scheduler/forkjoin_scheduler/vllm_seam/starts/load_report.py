"""What an engine tells its front ends of itself: its load, and how well admission foresees."""

from __future__ import annotations

from vllm.v1.engine import EngineCoreOutputs

from forkjoin_scheduler.publish.events import Admission, Load
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_scheduler.vllm_seam.starts.admission_gate import AdmissionGate
from forkjoin_scheduler.vllm_seam.starts.waiting import Waiters


class LoadReport:
    """Owns what was told last, for what has not changed is not told again."""

    def __init__(self, core: Core, gate: AdmissionGate, waits: Waiters, num_front_ends: int) -> None:
        self._core, self._gate, self._waits = core, gate, waits
        self._num_front_ends = num_front_ends
        self._told = self._load()

    def tell(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Put into ``result``, by front end, what has changed in this step."""
        self._tell_load(result)
        self._tell_peaks(result)

    def _load(self) -> Load:
        """How many threads and requests wait to run, and what is expected of one more."""
        num_threads, num_requests = self._waits.count()
        admission = self._gate.admission
        return Load(
            threads=num_threads,
            requests=num_requests,
            expected_tokens=round(admission.tokens.mean),
            expected_threads=round(1 + admission.forks.mean * max(admission.width.mean - 1, 0), 1),
        )

    def _tell_load(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Tell the front ends the load: each refuses by it what would wait too long."""
        load = self._load()
        if load == self._told:
            return
        self._told = load
        packed = wire.pack("", [load], self._core.engine)
        for front_end in range(self._num_front_ends):
            result.setdefault(front_end, EngineCoreOutputs()).outputs.append(packed)

    def _tell_peaks(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Tell one front end what admission expected of the requests that have ended, against what came."""
        if ratios := self._gate.take_peak_ratios():
            packed = wire.pack("", [Admission(peak_ratios=ratios)], self._core.engine)
            result.setdefault(0, EngineCoreOutputs()).outputs.append(packed)
