"""Which requests of families load KV from a connector, where the engine has one.

A connector is asked for the KV of each request that starts without any. Parents and threads that have lost
their blocks start like that when it is their turn again: what the connector has of them is loaded and not
recomputed.

Invariants (pinned by tests): what starts on blocks that are there loads nothing; nothing is loaded in the
step in which its request leaves the workers; a request is after its load what it was before.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.cache.prefixes import Prefixes
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import Fence
from forkjoin_scheduler.vllm_seam.starts.connector import forget_blocks

#: Loadable tokens (None: not known yet), and whether they are loaded between steps.
Match = tuple[int | None, bool]


class Loading:
    """Stands between vLLM and its KV connector. Owns what requests were before their load."""

    def __init__(self, core: Core, fence: Fence, jobs: KVJobs, prefixes: Prefixes) -> None:
        self._core = core
        self._fence = fence
        self._jobs = jobs
        self._prefixes = prefixes
        #: What a request was, new to the workers or preempted, before it waited for a load.
        self._was: dict[str, RequestStatus] = {}
        #: Whether a request that could start in this step is asked for again in the next.
        self.has_postponed = False

    def stand_between(self) -> None:
        """Let vLLM ask us where it asks the connector.

        Patch: ``get_num_new_matched_tokens`` of this scheduler's connector.
        Symptom without it: a thread waits for a load though its parent's blocks are there.
        Upstream: ``skip_reading_prefix_cache`` of a request keeps it from local blocks, too. Remove when a
        scheduler can say which requests a connector is asked for.
        """
        scheduler = self._core.scheduler
        connector = scheduler.connector
        ask: Callable[[Request, int], Match] = connector.get_num_new_matched_tokens

        def get_num_new_matched_tokens(request: Request, num_computed_tokens: int) -> Match:
            if self._fence.answer("start", request, self._passes_by, False):
                return 0, False
            num_tokens, is_async = ask(request, num_computed_tokens)
            if num_tokens and is_async and request.request_id in scheduler.reset_preempted_req_ids:
                # The connector ends the transfers of what leaves the workers, and takes all for stores.
                num_tokens = None
            if num_tokens is None:
                self.has_postponed = True
                return None, False
            if num_tokens and is_async:
                self._was[request.request_id] = request.status
            return max(num_tokens, 0), is_async

        setattr(connector, "get_num_new_matched_tokens", get_num_new_matched_tokens)  # noqa: B010

    def _passes_by(self, request: Request) -> bool:
        """Whether ``request`` is a thread that has written nothing, on blocks that are there, or a fill."""
        is_new = request.request_id in self._prefixes.sharing and not request.num_output_tokens
        if not is_new and request.request_id not in self._jobs.prefills:
            return False
        forget_blocks(self._core.scheduler, request)  # as the connector does itself when it is asked
        return True

    def ended(self, request: Request) -> None:
        """The load of ``request`` has ended: it is again what it was.

        vLLM calls preempted what it has ever preempted; a branch that has joined since is new to the workers.
        """
        if (was := self._was.pop(request.request_id, None)) is not None:
            request.status = was

    def forget(self, request_id: str) -> None:
        """Keep nothing of a request that vLLM has forgotten."""
        self._was.pop(request_id, None)
