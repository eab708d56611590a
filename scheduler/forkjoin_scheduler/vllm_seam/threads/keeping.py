"""What is kept of the KV of threads that have ended, until their join takes it."""

from __future__ import annotations

from collections.abc import Callable

from vllm.v1.request import Request

from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.cache.stitching import Stitching
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily


class Keeping:
    """Holds back the blocks of requests that have ended. What it holds is in ``LiveFamily.held``."""

    def __init__(self, core: Core, placing: Placing, jobs: KVJobs, stitching: Stitching) -> None:
        self._core = core
        self._placing = placing
        self._jobs = jobs
        self._stitching = stitching

    def hold_back(self, request: Request) -> bool:
        """Hold the blocks of a ``request`` that has ended, if a join or a job needs them."""
        if job := self._jobs.prefills.get(request.request_id):
            assert job.fill is not None
            job.unclaimed_blocks.append(
                kv.hold(self._core.kv_cache_manager, request, len(job.fill.token_ids))
            )
            return True
        if request.request_id in self._placing.to_stitch:  # its KV was not put together, and will not be now
            self._placing.unstitch(request.request_id)
            return False
        entry = self._core.threads.get(request.request_id)
        # One that was preempted with its last token in flight ends without blocks.
        if entry and kv.has_blocks(self._core.kv_cache_manager, request):
            live, thread = entry
            keeps = live.dialect.join.keeps_blocks_of(live.dialect, thread)
            if keeps and kv.is_recurrent(self._core.kv_cache_manager):
                return False  # its state may be past the text that is joined: the parent goes on from its own
            if keeps and thread.state is BranchState.DECODING:
                live.held[thread] = kv.hold(self._core.kv_cache_manager, request, request.num_tokens)
                return True
        return False

    def keep(
        self,
        live: LiveFamily,
        thread: Branch,
        *,
        may_lack_kv: bool,
        closed: Callable[[LiveFamily, Branch], None],
    ) -> None:
        """Keep what the join of ``thread`` needs; ``closed`` is called when all of it is there."""
        held = live.held.pop(thread, None)
        if held is not None:
            self._trim(live, thread, held)
        if may_lack_kv:
            if not self._stitching.close_kv(live, thread, held, closed):
                return
        elif held is not None:
            live.held[thread] = held
        closed(live, thread)

    @staticmethod
    def _trim(live: LiveFamily, thread: Branch, held: kv.HeldBlocks) -> None:
        """Of what a thread's blocks hold, an end of sequence does not count, nor what may differ by mode.

        The token sampled last has KV in async scheduling only.
        """
        assert thread.plan is not None
        kept = thread.fork_len + len(thread.plan.header_ids) + len(thread.token_ids)
        if thread.end is ThreadEnd.EOS or thread.plan.end is None or not live.dialect.join.moves_kv:
            kept -= 1
        held.num_tokens = min(held.num_tokens, kept)
