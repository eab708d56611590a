"""Stitched joins in the engine: KV moved behind KV, and computed anew where it was lost.

The KV of a stitched context can't be computed from its tokens in a row: each thread saw only
itself. So every thread's blocks are kept until the join; the branch adopts them, and the orders of
the step in which it is scheduled next tell the workers which slots to move, for no gap to be left. A
stitched branch that loses its blocks is *restored*: its own text up to each fork is computed, then
each thread upon it, then they are stitched again.

Invariants (pinned by tests): stitched KV is never hashed; blocks that are moved from stay held
until the step that moves them is scheduled; a restored context has the KV it had.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.errors import IllegalTransition
from forkjoin_scheduler.family import Branch, BranchState
from forkjoin_scheduler.join import body
from forkjoin_scheduler.stitch import (
    Offsets,
    joined_offset,
    num_inherited,
    num_skipped,
    offset_runs,
    start_offsets,
)
from forkjoin_scheduler.vllm_seam import kv, queues
from forkjoin_scheduler.vllm_seam.jobs import Fill, Job, Jobs, Work
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.orders import Int64s, Orders, attach

Source = str | kv.HeldBlocks | None
#: A part of a job's work that comes to a result.
Part = Generator[Fill, kv.HeldBlocks, kv.HeldBlocks]


class Stitching(Jobs):
    """Keeps threads' KV for stitched joins, stitches it, and restores it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        #: Requests that vLLM preempted in this step and that can't be computed in a row.
        self._lost: list[Request] = []
        #: Requests that started in this step, on KV of others.
        self._started: set[str] = set()

    # ---- orders to the workers -------------------------------------------------------------

    def _give_orders(self, output: SchedulerOutput) -> None:
        """Tell the workers what to move in this step, and whose positions are off their slots."""
        scheduled = output.num_scheduled_tokens
        offsets = {i: self._runs_of(i, n) for i, n in scheduled.items() if i in self._offsets}
        moves: list[Int64s] = []
        self._each("stitch", [(i, moves) for i in self._to_stitch if i in scheduled], self._order_move)
        if moves or offsets:
            copies = np.concatenate(moves) if moves else np.empty((0, 2), dtype=np.int64)
            attach(output, Orders(copies, offsets))

    def _runs_of(self, request_id: str, num_tokens: int) -> list[tuple[int, int]]:
        """The offsets of the tokens of a request that this step computes."""
        first = self.requests[request_id].num_computed_tokens - num_tokens
        return offset_runs(self._offsets[request_id], first, num_tokens)

    def _order_move(self, request_id: str, moves: list[Int64s]) -> None:
        stitched = self._to_stitch.pop(request_id)
        holes = kv.request_slots(self.kv_cache_manager, request_id, stitched.holes)
        moves.append(np.stack([stitched.sources, holes], axis=1))
        # Whoever gets these blocks gets them in a later step, and writes them behind this one.
        kv.release(self.kv_cache_manager, *stitched.rest)

    # ---- threads ---------------------------------------------------------------------------

    def _set_start(self, request: Request, thread: Branch, parent: Request) -> None:
        """Positions and hashing of the request of a new thread in a stitched dialect."""
        self._set_offsets(request, start_offsets(thread))
        if thread.offset or kv.is_unhashed(parent):
            kv.never_hash(request)

    def _own_ids(self, live: LiveFamily, thread: Branch) -> list[int]:
        """The tokens of a thread behind its parent's context, as they stand in the joined one."""
        assert thread.plan is not None
        return [*thread.plan.header_ids, *body(live.dialect, thread, self._tokenizer)]

    def _context(self, live: LiveFamily, thread: Branch) -> list[int]:
        """All tokens before the end of a thread that has ended, in the order of their KV."""
        parent = self._request_of(thread.parent)
        return [*parent._all_token_ids[: thread.fork_len], *self._own_ids(live, thread)]

    def _close_kv(self, live: LiveFamily, thread: Branch, held: kv.HeldBlocks | None) -> bool:
        """Keep the KV of a thread that has ended (None: it has lost it); returns whether it is all there.

        Its end tag, or what was written in its place, may have none yet: a job computes it, and
        calls ``_closed``. So does the one that restores the family, if that has lost its KV.
        """
        context = self._context(live, thread)
        if held is not None and held.num_tokens >= len(context):
            live.held[thread] = held
            return True
        if held is None and self._request_of(thread.parent).num_computed_tokens < num_inherited(thread):
            return False
        first = [] if held is None else [held]

        def work(job: Job) -> Work:
            if first:
                computed = yield Fill(context, first.pop(), offsets=((0, thread.offset),), is_linear=False)
            else:
                computed = yield from self._replay(
                    job, live, thread, context, self._request_of(thread.parent).request_id
                )
            live.closing.discard(thread)
            if held := self._taken_for(thread, job, computed):
                live.held[thread] = held
                self._closed(live, thread)

        live.closing.add(thread)
        self._start_job(live, work)
        return False

    if TYPE_CHECKING:

        def _closed(self, live: LiveFamily, thread: Branch) -> None:
            """All KV of ``thread`` is there: the layer of the ends says what then."""

    # ---- joins -----------------------------------------------------------------------------

    def _stitched(self, live: LiveFamily, held: dict[Branch, kv.HeldBlocks]) -> kv.Stitched:
        """The context behind a join of the threads (in outline order) whose blocks are handed over."""
        start, *others = (
            kv.Piece(
                blocks,
                t.fork_len + num_skipped(t, is_first=False) if i else 0,
                t.fork_len + len(self._own_ids(live, t)),
            )
            for i, (t, blocks) in enumerate(held.items())
        )
        return kv.stitch(self.kv_cache_manager, start, others)

    def _start_stitched(self, request: Request, stitched: kv.Stitched, offsets: Offsets) -> None:
        """Give ``request`` the KV that is put together when it is scheduled next."""
        kv.adopt(self.kv_cache_manager, request, stitched.held)
        kv.never_hash(request)
        self._to_stitch[request.request_id] = stitched
        self._offsets[request.request_id] = offsets

    def _offset_behind(self, live: LiveFamily, threads: Sequence[Branch]) -> int:
        """The offset of what follows a join of ``threads``."""
        lengths = [len(self._own_ids(live, t)) for t in threads]
        skipped = [num_skipped(t, is_first=t is threads[0]) for t in threads]
        joined_len = threads[0].fork_len + sum(lengths) - sum(skipped)
        return joined_offset(threads, lengths, joined_len, live.dialect.positions)

    # ---- restoring -------------------------------------------------------------------------

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        # What is in flight for one that is computed anew would end it, or fork it, without its KV.
        try:
            is_lost = request.request_id in self._fills or kv.is_unhashed(request)
        except Exception as error:
            self._contain("preempt", error, request)
            is_lost = True
        super()._preempt_request(request, timestamp, drop_stale_output or is_lost)
        try:
            if self._spoken is not None:
                queues.requeue(self, request)
        except Exception as error:
            self._contain("preempt", error, request)
        if is_lost:
            self._lost.append(request)

    def _restore_lost(self, request: Request) -> None:
        """See to it that a ``request`` that vLLM has preempted is computed as it was, not in a row."""
        if request.is_finished():
            return
        if job := self._fills.get(request.request_id):
            # A linear one vLLM computes again by itself.
            if job.fill is not None and not job.fill.is_linear:
                self._restart_job(job)
            return
        live, branch = self._branch_of(request)
        if branch.joined_forks:
            queues.suspend(self, request)
            self._start_job(live, partial(self._restored, live, branch))

    def _suspend_family(self, live: LiveFamily) -> None:
        """Take all KV of a stitched family back; ``_regain_family`` lets it be computed anew."""
        self._drop_jobs(live)
        self._release_held(live, list(live.held))
        for branch in live.family.root.subtree():
            if branch.is_live and (request := self.requests.get(branch.request_id)):
                self._suspend(request)
        self._lost = [r for r in self._lost if r.status == RequestStatus.PREEMPTED]

    def _regain_family(self, live: LiveFamily) -> None:
        self._start_job(live, partial(self._restored, live, live.family.root))

    def _suspend(self, request: Request) -> None:
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
            super()._preempt_request(request, time.monotonic(), drop_stale_output=True)
        else:
            self.kv_cache_manager.free(request)
            self._unstitch(request.request_id)
        if request.status == RequestStatus.WAITING_FOR_STREAMING_REQ:
            queues.repark(self, request, 0)
        else:
            request.num_computed_tokens = 0
            queues.suspend(self, request)

    def _release_held(self, live: LiveFamily, threads: Sequence[Branch]) -> None:
        for thread in threads:
            if held := live.held.pop(thread, None):
                kv.release(self.kv_cache_manager, held)

    def _restored(self, live: LiveFamily, branch: Branch, job: Job) -> Work:
        parent = branch.parent
        yield from self._restore(job, live, branch, None if parent is None else parent.request_id)

    def _restore(
        self, job: Job, live: LiveFamily, branch: Branch, source: Source
    ) -> Generator[Fill, kv.HeldBlocks, None]:
        """Compute anew what a suspended ``branch`` has lost, and all beneath it.

        While it does, a branch that has gone on may end the answer, and with it cancel or cut one that is
        still waited for. And it may be started again at any place: what has its KV is left alone.
        """
        if self._lacks_kv(branch):
            yield from self._restore_own(job, live, branch, source)
        if branch.state is not BranchState.PARKED:
            return
        yield from self._restore_ended(job, live, branch)
        for thread in branch.waits_for:
            yield from self._restore(job, live, thread, branch.request_id)

    def _lacks_kv(self, branch: Branch) -> bool:
        """Whether a branch that has not ended waits for its KV to be computed anew."""
        request = self.requests.get(branch.request_id)
        if request is None or request.status != RequestStatus.WAITING_FOR_STREAMING_REQ:
            return False
        return not request.num_computed_tokens

    def _restore_own(
        self, job: Job, live: LiveFamily, branch: Branch, source: Source
    ) -> Generator[Fill, kv.HeldBlocks, None]:
        """Let ``branch`` run again on the KV behind its last join, or wait with all of it."""
        request = self._request_of(branch)
        context = list(request._all_token_ids)
        start, offsets = yield from self._replay_forks(job, live, branch, context, source)
        if not self._lacks_kv(branch):
            if start is not None:
                kv.release(self.kv_cache_manager, start.held, *start.rest)
            return
        if branch.state is not BranchState.PARKED:
            if start is not None:
                self._start_stitched(request, start, offsets)
            queues.regain(self, request, 0 if start is None else start.num_tokens)
            return
        held = job.take((yield self._fill(context, start, source, branch, offsets)))
        if not self._lacks_kv(branch):
            kv.release(self.kv_cache_manager, held)
            return
        kv.adopt(self.kv_cache_manager, request, held)
        queues.repark(self, request, len(context))

    def _restore_ended(
        self, job: Job, live: LiveFamily, branch: Branch
    ) -> Generator[Fill, kv.HeldBlocks, None]:
        """Compute the threads of a parked ``branch`` that have ended.

        Before any that has not goes on: when that one ends, the branch may have to join.
        """
        ended = [t for t in branch.waits_for if t.request_id not in self._threads and t not in live.closing]
        for thread in ended:
            if thread in live.held:
                continue
            context = self._context(live, thread)
            computed = yield from self._replay(job, live, thread, context, branch.request_id)
            if (held := self._taken_for(branch, job, computed)) is None:
                return
            live.held[thread] = held
        for thread in ended:
            if thread.is_live:
                self._closed(live, thread)

    def _taken_for(self, branch: Branch, job: Job, computed: kv.HeldBlocks) -> kv.HeldBlocks | None:
        """What ``job`` has computed; None, and it is released, if ``branch`` was cancelled meanwhile."""
        held = job.take(computed)
        if branch.is_live:
            return held
        kv.release(self.kv_cache_manager, held)
        return None

    def _replay(self, job: Job, live: LiveFamily, thread: Branch, context: list[int], source: Source) -> Part:
        """The KV of the ``context`` of a thread that has ended, on ``source``."""
        start, offsets = yield from self._replay_forks(job, live, thread, context, source)
        return (yield self._fill(context, start, source, thread, offsets))

    def _replay_forks(
        self, job: Job, live: LiveFamily, branch: Branch, context: list[int], source: Source
    ) -> Generator[Fill, kv.HeldBlocks, tuple[kv.Stitched | None, Offsets]]:
        """The KV up to behind the last join of ``branch`` (None: it has none), and the offsets there."""
        start, offsets = None, start_offsets(branch)
        for threads in branch.joined_forks:
            fork_len = threads[0].fork_len
            prefix = yield self._fill(context[:fork_len], start, source, branch, offsets)
            computed = {}
            for thread in threads:
                own = [*context[:fork_len], *self._own_ids(live, thread)]
                computed[thread] = yield from self._replay(job, live, thread, own, prefix)
            start = self._stitched(live, {t: job.take(held) for t, held in computed.items()})
            offsets = ((0, self._offset_behind(live, threads)),)
            kv.release(self.kv_cache_manager, job.take(prefix))
        return start, offsets

    @staticmethod
    def _fill(
        context: list[int], start: kv.Stitched | None, source: Source, branch: Branch, offsets: Offsets
    ) -> Fill:
        if start is not None:
            return Fill(context, start, offsets=offsets, is_linear=False)
        needed = num_inherited(branch) if isinstance(source, str) else 0
        return Fill(context, None, source, branch.fork_len, needed, offsets, is_linear=source is None)

    # ---- vLLM's hooks ----------------------------------------------------------------------

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """A thread starts on its parent's blocks, where those are still held; a fill on its source's."""
        shared = None
        try:
            shared = self._shared_with_source(request)
        except Exception as error:
            self._contain("start", error, request)
        return shared or super()._get_local_prefix_cache_hit(request)

    def _shared_with_source(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool] | None:
        self._started.add(request.request_id)
        source, limit = self._source_of(request)
        shared = 0 if source is None else self._num_shared(source, min(limit, request.num_tokens - 1))
        self._check_shared(request, shared)
        if source is None or not shared:
            return None
        return kv.shared_prefix(self.kv_cache_manager, source, shared), shared, 0, False

    def _num_shared(self, source: str | kv.HeldBlocks, limit: int) -> int:
        """How many of its first tokens, at most ``limit``, have KV in ``source`` that another may take."""
        if isinstance(source, kv.HeldBlocks):
            shared = min(source.num_tokens, limit)
        else:
            shared = min(self.requests[source].num_computed_tokens, limit)
            if source in self._started:
                # It may have found blocks that this very step computes. These may be shared as they are,
                # but blocks are copied before anything is computed.
                shared = kv.in_whole_blocks(self.kv_cache_manager, shared)
        return shared if kv.is_there(self.kv_cache_manager, source, shared) else 0

    def _check_shared(self, request: Request, shared: int) -> None:
        """Raise IllegalTransition where stitched tokens would be computed in a row, silently wrong."""
        needed = 0
        if job := self._fills.get(request.request_id):
            needed = job.fill.num_needed if job.fill is not None else 0
        elif entry := self._threads.get(request.request_id):
            needed = num_inherited(entry[1]) if entry[0].dialect.is_stitched else 0
        if shared < needed:
            raise IllegalTransition(
                f"{request.request_id}: expected to find the KV of {needed} tokens, found that of {shared}"
            )

    def _source_of(self, request: Request) -> tuple[Source, int]:
        """Whose first tokens ``request`` shares, and how many."""
        if job := self._fills.get(request.request_id):
            assert job.fill is not None
            source = job.fill.source
            is_there = not isinstance(source, str) or source in self.requests
            return (source, job.fill.num_shared) if is_there else (None, 0)
        if entry := self._threads.get(request.request_id):
            thread = entry[1]
            assert thread.parent is not None
            if thread.fork_len and thread.parent.request_id in self.requests:
                return thread.parent.request_id, thread.fork_len
        return None, 0
