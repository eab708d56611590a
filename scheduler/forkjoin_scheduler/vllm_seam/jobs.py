"""Jobs: KV that is computed beside the decoding, by requests whose one sample is dropped.

A job is a generator. It yields a ``Fill`` (these tokens, starting from that KV) and is sent the
blocks that hold them. Three things need it: the tokens that close a stitched thread, a stitched
context that lost its blocks and is computed anew (``stitching.py``), and threads of a re-prefill
join that are prefilled while their siblings still decode (``joining.py``).

Blocks of a job are in the name of its fill's request, or in ``Job.loose``; a job that loses its
fill to preemption is started again from nothing. Invariant: whatever way a job ends, ``loose`` is
empty and no request of its is left.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import count

from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.stitch import Offsets
from forkjoin_scheduler.vllm_seam import kv, queues
from forkjoin_scheduler.vllm_seam.fence import Fence
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.requests import new_request

_ONE_TOKEN = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)


@dataclass(frozen=True)
class Fill:
    """The KV of ``token_ids``: from ``start``, or sharing the first ``num_shared`` tokens of ``source``.

    ``num_needed``: how many of these it can't compute. ``is_linear``: whether it may be found by, and taken
    from, vLLM's prefix cache. ``known_hashes``: of its first blocks, where they are known already.
    """

    token_ids: list[int]
    start: kv.HeldBlocks | kv.Stitched | None = None
    source: str | kv.HeldBlocks | None = None
    num_shared: int = 0
    num_needed: int = 0
    offsets: Offsets = ((0, 0),)
    is_linear: bool = True
    known_hashes: Sequence[BlockHash] = ()


Work = Generator[Fill, kv.HeldBlocks, None]


@dataclass(eq=False)
class Job:
    """One generator at work. ``make`` starts it anew, with nothing of its blocks left."""

    live: LiveFamily
    make: Callable[[Job], Work]
    work: Work | None = None
    fill: Fill | None = None
    request: Request | None = None
    #: Blocks that the generator has been sent and not handed on yet.
    loose: list[kv.HeldBlocks] = field(default_factory=list)
    #: Of the blocks of its last fill.
    last_hashes: Sequence[BlockHash] = ()

    def take(self, held: kv.HeldBlocks) -> kv.HeldBlocks:
        """Hand on ``held``: whoever takes it answers for it."""
        self.loose.remove(held)
        return held


class Jobs(Fence):
    """Runs jobs, and moves the KV that they and the joins put together."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._fill_ids = count()
        #: Requests whose context is put together when they are scheduled next.
        self._to_stitch: dict[str, kv.Stitched] = {}
        #: Positions less slots, of the requests where they differ.
        self._offsets: dict[str, Offsets] = {}

    def _start_job(self, live: LiveFamily, make: Callable[[Job], Work]) -> Job:
        job = Job(live, make)
        live.jobs.append(job)
        self._restart_job(job)
        return job

    def _restart_job(self, job: Job) -> None:
        self._clear_job(job)
        job.work = job.make(job)
        self._step_job(job, None)

    def _step_job(self, job: Job, held: kv.HeldBlocks | None) -> None:
        """Go on with ``job``, which has computed ``held``."""
        assert job.work is not None
        try:
            fill = next(job.work) if held is None else job.work.send(held)
        except StopIteration:
            assert not job.loose
            job.live.jobs.remove(job)
            return
        self._start_fill(job, fill)

    def _start_fill(self, job: Job, fill: Fill) -> None:
        request_id = f"{job.live.family.request_id}#fill{next(self._fill_ids)}"
        params = copy(_ONE_TOKEN)
        request = new_request(job.live.request, request_id, fill.token_ids, params, fill.known_hashes)
        job.fill, job.request = fill, request
        self._fills[request_id] = job
        self.requests[request_id] = request
        if not fill.is_linear:
            kv.never_hash(request)
        self._set_offsets(request, fill.offsets)
        if fill.start is not None:
            held = fill.start
            if isinstance(held, kv.Stitched):
                self._to_stitch[request_id] = held
                held = held.held
            kv.adopt(self.kv_cache_manager, request, held)
            request.num_computed_tokens = held.num_tokens
        queues.start(self, request)

    def _set_offsets(self, request: Request, offsets: Offsets) -> None:
        if any(offset for _, offset in offsets):
            self._offsets[request.request_id] = offsets

    def _fill_done(self, job: Job) -> None:
        """The request of ``job`` has computed its KV, which is ``loose`` now."""
        assert job.request is not None
        self._fills.pop(job.request.request_id)
        self._offsets.pop(job.request.request_id, None)
        job.last_hashes = job.request.block_hashes
        job.request = job.fill = None
        self._step_job(job, job.loose[-1])

    def _clear_job(self, job: Job) -> None:
        """Drop what ``job`` has computed, and its request."""
        if job.request is not None:
            request_id, job.request = job.request.request_id, None
            self._fills.pop(request_id, None)
            self._offsets.pop(request_id, None)
            if request_id in self.requests:
                super().finish_requests([request_id], RequestStatus.FINISHED_ABORTED)
            self._unstitch(request_id)
        if job.work is not None:
            job.work.close()
            job.work = None
        kv.release(self.kv_cache_manager, *job.loose)
        job.loose.clear()

    def _drop_jobs(self, live: LiveFamily) -> None:
        for job in live.jobs:
            self._clear_job(job)
        live.jobs.clear()
        live.ahead.clear()
        live.closing.clear()

    def _unstitch(self, request_id: str) -> None:
        """Release what was to be put together for a request that will not run."""
        if stitched := self._to_stitch.pop(request_id, None):
            kv.release(self.kv_cache_manager, *stitched.rest)
