"""What a family lets out at the end of a step, and how it takes its leave."""

from __future__ import annotations

from vllm.v1.engine import EngineCoreOutputs

from forkjoin_scheduler.machine import advancing, ending
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts.admission_gate import AdmissionGate
from forkjoin_scheduler.vllm_seam.threads.giving import Giving
from forkjoin_scheduler.vllm_seam.threads.performing import Performing


class Leaving:
    """Lets families say what they have to say. Owns those whose last words have not left yet."""

    def __init__(
        self, core: Core, placing: Placing, gate: AdmissionGate, performing: Performing, giving: Giving
    ) -> None:
        self._core = core
        self._placing = placing
        self._gate = gate
        self._performing = performing
        self._giving = giving
        #: Aborted families whose last events have not left yet.
        self.aborted_pending_flush: list[LiveFamily] = []

    def move_on(self, live: LiveFamily, result: dict[int, EngineCoreOutputs]) -> None:
        """Do what is due in a family at the end of a step, and let out what it has to say."""
        has_ended = live.request.is_finished()
        self._performing.perform(live, advancing.advance(live, root_has_ended=has_ended))
        while live.to_give:
            self._giving.give(live)
            self._performing.perform(live, advancing.advance(live))
        live.num_planned = 0
        told, leaving = live.leaving(self._core.engine)
        if not live.family.is_live:  # before its end is emitted: after that it can't fail any more
            self._gate.leave(live.request, by_itself=True)
        if told or leaving:
            outputs = result.setdefault(live.request.client_index, EngineCoreOutputs()).outputs
            # The front end takes them in slices (VLLM_V1_OUTPUT_PROC_CHUNK_SIZE) and answers in between:
            # events after the slice that ends a request would find nobody.
            outputs[:0] = told
            outputs += leaving
            live.events = []
        if not live.family.is_live:
            self._core.live.pop(live.family.request_id, None)
            self._placing.offsets.pop(live.family.request_id, None)

    def part_with(self, live: LiveFamily, ids: list[str]) -> None:
        """A family is ended from outside: add to ``ids`` the requests that end with its own."""
        self._gate.leave(live.request, by_itself=self._gate.has_stop_string(live.request))
        ids += self._performing.drop_family(live, ending.end_tree(live))
        live.transcripts[live.family.root].release()
        self.aborted_pending_flush.append(self._core.live.pop(live.family.request_id))
