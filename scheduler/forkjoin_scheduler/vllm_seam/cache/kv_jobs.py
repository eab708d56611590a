"""Jobs run (``kv_job.py``): each fill by a request of its own, whose one sample is dropped."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from itertools import count

from vllm.sampling_params import SamplingParams
from vllm.v1.request import RequestStatus

from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.kv_job import KVJob, PrefillRequest, Work
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import queues
from forkjoin_scheduler.vllm_seam.starts.requests import new_request

_ONE_TOKEN = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)


class KVJobs:
    """Runs jobs. Owns their requests."""

    def __init__(self, core: Core, placing: Placing) -> None:
        self._core = core
        self._placing = placing
        #: KVJobs, by the id of the request that computes for them.
        self.prefills: dict[str, KVJob] = {}
        self._fill_ids = count()

    def start(self, live: LiveFamily, make: Callable[[KVJob], Work]) -> KVJob:
        """Begin the job that ``make`` makes, for a family."""
        job = KVJob(live, make)
        live.jobs.append(job)
        self.restart(job)
        return job

    def restart(self, job: KVJob) -> None:
        """Begin ``job`` again, with nothing of its blocks left."""
        self.clear(job)
        job.work = job.make(job)
        self._step(job, None)

    def _step(self, job: KVJob, held: kv.HeldBlocks | None) -> None:
        """Go on with ``job``, which has computed ``held``."""
        assert job.work is not None
        try:
            fill = next(job.work) if held is None else job.work.send(held)
        except StopIteration:
            assert not job.unclaimed_blocks
            job.live.jobs.remove(job)
            return
        self._start_fill(job, fill)

    def _start_fill(self, job: KVJob, fill: PrefillRequest) -> None:
        request_id = f"{job.live.family.request_id}#fill{next(self._fill_ids)}"
        params = copy(_ONE_TOKEN)
        request = new_request(job.live.request, request_id, fill.token_ids, params, fill.known_hashes)
        job.fill, job.request = fill, request
        self.prefills[request_id] = job
        self._core.requests[request_id] = request
        if not fill.is_linear:
            self._placing.never_hash(request)
        self._placing.set_offsets(request, fill.offsets)
        self._placing.set_paths(request, fill.paths)
        if fill.start is not None:
            held = fill.start
            if isinstance(held, kv.Stitched):
                self._placing.to_stitch[request_id] = held
                held = held.held
            kv.transfer_blocks(self._core.kv_cache_manager, request, held)
            request.num_computed_tokens = held.num_tokens
        queues.start(self._core.scheduler, request)

    def done(self, job: KVJob) -> None:
        """The request of ``job`` has computed its KV, which is ``unclaimed_blocks`` now."""
        assert job.request is not None
        self.prefills.pop(job.request.request_id)
        self._placing.ended(job.request.request_id)
        assert job.fill is not None
        # its one sample has filled a block where its tokens end right before one's end
        job.last_hashes = self._core.hashes_before(job.request, len(job.fill.token_ids))
        job.request = job.fill = None
        self._step(job, job.unclaimed_blocks[-1])

    def clear(self, job: KVJob) -> None:
        """Drop what ``job`` has computed, and its request."""
        if job.request is not None:
            request_id, job.request = job.request.request_id, None
            self.prefills.pop(request_id, None)
            self._placing.ended(request_id)
            if request_id in self._core.requests:
                self._core.scheduler.end_requests([request_id], RequestStatus.FINISHED_ABORTED)
            self._placing.unstitch(request_id)
        if job.work is not None:
            job.work.close()
            job.work = None
        kv.release(self._core.kv_cache_manager, *job.unclaimed_blocks)
        job.unclaimed_blocks.clear()

    def drop(self, live: LiveFamily) -> None:
        """End all jobs of a family, however far they are."""
        for job in live.jobs:
            self.clear(job)
        live.jobs.clear()
        live.ahead.clear()
        live.closing.clear()
