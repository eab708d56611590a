"""What is due in a family at the end of a step."""

from __future__ import annotations

from functools import partial

from forkjoin_scheduler.machine.thread_end import ThreadEnd
from forkjoin_scheduler.vllm_seam.core import STOPPED
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.threads.cancelling import Cancelling
from forkjoin_scheduler.vllm_seam.threads.cutting import Cutting
from forkjoin_scheduler.vllm_seam.threads.ending import Ends
from forkjoin_scheduler.vllm_seam.threads.joining import Joins
from forkjoin_scheduler.vllm_seam.threads.voting import Voting


class Advancing:
    """Ends what is to end, and joins what can be joined. Keeps nothing."""

    def __init__(
        self, ends: Ends, cutting: Cutting, joins: Joins, voting: Voting, cancelling: Cancelling
    ) -> None:
        self._ends = ends
        self._cutting = cutting
        self._joins = joins
        self._voting = voting
        self._cancelling = cancelling

    def advance(self, live: LiveFamily) -> None:
        """Do what is due: end a family out of budget, join the branches whose threads have ended."""
        family = live.family
        if live.request.is_finished() and family.root.is_live:
            family.end(family.root, ThreadEnd.STOP)
            return
        if live.takes_over and live.stop_piece is not None and family.is_live:
            self._ends.end_family(live, STOPPED)
        is_spent = live.is_overdrawn or (family.has_live_threads and not family.remaining)
        if is_spent and live.finish_reason is None:
            self._cutting.end_at_budget(live)
        if live.cancelled:
            self._cancelling.advance(live)
        if live.dialect.join.when == "first":
            self._ends.cut_slower(live)
        self._voting.advance(live)
        if live.dialect.join.moves_kv and any(map(partial(self._joins.outgrows, live), live.parked())):
            self._cutting.end_at_limit(live, "joined_too_long", live.dialect.policies.joined_too_long)
        while family.is_live and (branch := family.take_joinable()):
            live.clock_join(branch)
            self._joins.join(live, branch)
        if family.is_live and not family.remaining:
            self._cutting.end_at_budget(live)
        if live.own_finish is not None and not family.is_live and live.finish_reason is None:
            live.finish_reason = live.own_finish
