"""A client cancels a thread (``machine/cancelling.py``): a front end asks for it between two steps.

It comes by ``engine_calls.py``. The thread ends at the end of the next step, where all others end.
"""

from __future__ import annotations

from forkjoin_scheduler.machine import cancelling
from forkjoin_scheduler.publish.feed import key_in
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.starts.sharing import tenant_of


class Cancelling:
    """Finds the families whose threads are to end. Keeps nothing."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def ask(self, key: str, index: int, tenant: str) -> str:
        """Let a thread end at the end of the next step. Returns what its client hears of it.

        ``key``: in the id of its request; ``tenant``: who asks. Another's thread is one that there is not.
        """
        of_key = (live for request_id, live in self._core.live.items() if key_in(request_id) == key)
        live = next((live for live in of_key if tenant_of(live.request)[0] == tenant), None)
        return cancelling.UNKNOWN if live is None else cancelling.ask(live, index)
