"""Whose KV a request starts on: a thread on its parent's blocks, a fill on its source's."""

from __future__ import annotations

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.request import Request

from forkjoin_scheduler.errors import IllegalTransition
from forkjoin_scheduler.families.stitch import num_inherited
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.cache.stitching import Source
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.starts.connector import is_loading


class Prefixes:
    """Finds the blocks that new requests of families share. Owns which of them started in this step."""

    def __init__(self, core: Core, jobs: KVJobs) -> None:
        self._core = core
        self._jobs = jobs
        #: Requests that started in this step, on KV of others.
        self.started: set[str] = set()
        #: Those of them that found such.
        self.sharing: set[str] = set()

    def shared_with_source(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool] | None:
        """What vLLM's prefix cache answers for ``request``; None where it is to look itself."""
        self.started.add(request.request_id)
        source, limit = self._source_of(request)
        shared = 0 if source is None else self._num_shared(source, min(limit, request.num_tokens - 1))
        self._check_shared(request, shared)
        if source is None or not shared:
            return None
        self.sharing.add(request.request_id)
        return kv.shared_prefix(self._core.kv_cache_manager, source, shared), shared, 0, False

    def _num_shared(self, source: str | kv.HeldBlocks, limit: int) -> int:
        """How many of its first tokens, at most ``limit``, have KV in ``source`` that another may take."""
        if isinstance(source, kv.HeldBlocks):
            shared = min(source.num_tokens, limit)
        else:
            of = self._core.requests[source]
            computed = 0 if is_loading(of) else of.num_computed_tokens
            shared = min(computed, limit)
            if source in self.started:
                # It may have found blocks that this very step computes. These may be shared as they are,
                # but blocks are copied before anything is computed.
                shared = kv.in_whole_blocks(self._core.kv_cache_manager, shared)
            if kv.is_recurrent(self._core.kv_cache_manager):
                if shared < computed:
                    return 0  # a recurrent state is that after all of them
                if shared:
                    kv.cache_state(self._core.kv_cache_manager, of)
        return shared if kv.is_there(self._core.kv_cache_manager, source, shared) else 0

    def _check_shared(self, request: Request, shared: int) -> None:
        """Raise IllegalTransition where stitched tokens would be computed in a row, silently wrong."""
        needed = 0
        if job := self._jobs.prefills.get(request.request_id):
            needed = job.fill.num_needed if job.fill is not None else 0
        elif entry := self._core.threads.get(request.request_id):
            needed = num_inherited(entry[1]) if entry[0].dialect.join.moves_kv else 0
        if shared < needed:
            raise IllegalTransition(
                f"{request.request_id}: expected to find the KV of {needed} tokens, found that of {shared}"
            )

    def _source_of(self, request: Request) -> tuple[Source, int]:
        """Whose first tokens ``request`` shares, and how many."""
        if job := self._jobs.prefills.get(request.request_id):
            assert job.fill is not None
            source = job.fill.source
            is_there = not isinstance(source, str) or source in self._core.requests
            return (source, job.fill.num_shared) if is_there else (None, 0)
        if entry := self._core.threads.get(request.request_id):
            thread = entry[1]
            assert thread.parent is not None
            if thread.fork_len and thread.parent.request_id in self._core.requests:
                return thread.parent.request_id, thread.fork_len
        return None, 0
