"""What ends a thread because its client cancelled it: see ``request/cancelling.py``.

A front end asks for it between two steps (``engine_calls.py``). The thread ends at the end of the next
step, where all others end.
"""

from __future__ import annotations

from vllm.v1.request import RequestStatus

from forkjoin_scheduler.machine.family import Branch
from forkjoin_scheduler.machine.thread_end import ThreadEnd
from forkjoin_scheduler.machine.vote import Vote
from forkjoin_scheduler.publish.feed import key_in
from forkjoin_scheduler.request.cancelling import CANCELLING, UNKNOWN, end_without_vote, ending, thread_at
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts.sharing import tenant_of
from forkjoin_scheduler.vllm_seam.threads.ending import Ends


class Cancelling:
    """Ends single threads for their clients. Which are to end, ``LiveFamily.cancelled`` says."""

    def __init__(self, core: Core, ends: Ends) -> None:
        self._core, self._ends = core, ends

    def ask(self, key: str, index: int, tenant: str) -> str:
        """Let a thread end at the end of the next step. Returns what its client hears of it.

        ``key``: in the id of its request; ``tenant``: who asks. Another's thread is one that there is not.
        """
        of_key = (live for request_id, live in self._core.live.items() if key_in(request_id) == key)
        live = next((live for live in of_key if tenant_of(live.request)[0] == tenant), None)
        return UNKNOWN if live is None else self.ask_in(live, index)

    def ask_in(self, live: LiveFamily, index: int) -> str:
        """The same of a thread of ``live``."""
        thread = thread_at(live.family, index)
        if thread is None:
            return UNKNOWN
        if thread.end is not None:
            return thread.end.value
        if thread not in live.cancelled:
            live.cancelled.append(thread)
        return CANCELLING

    def advance(self, live: LiveFamily) -> None:
        """End what of the cancelled threads decodes.

        One whose KV is computed anew ends when that is done: its siblings that have ended get theirs before
        it, and their parent would join without.
        """
        for thread in ending(live.cancelled):
            if live.vote is not None:
                self._end_without_vote(live, thread, live.vote)
            elif self._core.request_of(thread).status != RequestStatus.WAITING_FOR_STREAMING_REQ:
                self._ends.stop(live, thread, ThreadEnd.CLIENT_CANCELLED)
        live.cancelled = [thread for thread in live.cancelled if thread.end is None]

    def _end_without_vote(self, live: LiveFamily, thread: Branch, vote: Vote) -> None:
        """A thread that votes is an answer of its own: one that is broken off is none, and has no vote."""
        has_started = thread not in live.later
        live.later = [later for later in live.later if later is not thread]
        self._ends.cancel(live, thread, end_without_vote(has_started=has_started))
        vote.lose_one()
