"""Stitched joins: the KV of threads put one after another, and recomputed where it was lost.

The KV of a stitched context can't be computed from its tokens in a row: each thread saw only
itself. So every thread's blocks are kept until the join, when the branch adopts them. A stitched
context that has lost its blocks is *replayed*: its own text up to each fork is computed, then
each thread upon it, then they are stitched again.

Invariants (pinned by tests): stitched KV is never hashed; a replayed context has the KV it had.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from vllm.v1.core.kv_cache_utils import BlockHash

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.families.stitch import (
    Offsets,
    num_inherited,
    num_skipped,
    path_parts,
    start_offsets,
)
from forkjoin_scheduler.machine import joining
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.kv_job import KVJob, PrefillRequest, Work
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily

Source = str | kv.HeldBlocks | None


#: A part of a job's work that has a result.
Part = Generator[PrefillRequest, kv.HeldBlocks, kv.HeldBlocks]


class Stitching:
    """Closes the KV of threads that have ended, stitches it, and replays it. Keeps nothing."""

    def __init__(self, core: Core, jobs: KVJobs) -> None:
        self._core = core
        self._jobs = jobs

    def context(self, live: LiveFamily, thread: Branch) -> list[int]:
        """All tokens before the end of a thread that has ended, in the order of their KV."""
        parent = self._core.request_of(thread.parent)
        return [*parent._all_token_ids[: thread.fork_len], *joining.own_ids(live, thread)]

    def close_kv(
        self,
        live: LiveFamily,
        thread: Branch,
        held: kv.HeldBlocks | None,
        closed: Callable[[LiveFamily, Branch], None],
    ) -> bool:
        """Keep the KV of a thread that has ended (None: it has lost it); returns whether it is all there.

        Its end tag, or what was written in its place, may have none yet: a job computes it, and
        calls ``closed``. So does the one that restores the family, if that has lost its KV.
        """
        context = self.context(live, thread)
        if held is not None and held.num_tokens >= len(context):
            live.held[thread] = held
            return True
        if held is None and self._core.request_of(thread.parent).num_computed_tokens < num_inherited(thread):
            return False
        first = [] if held is None else [held]

        def work(job: KVJob) -> Work:
            if first:
                offsets, paths = ((0, thread.offset),), path_parts(thread)
                computed = yield PrefillRequest(
                    context,
                    first.pop(),
                    offsets=offsets,
                    paths=paths,
                    is_linear=False,
                    known_hashes=self._known_hashes(thread),
                )
            else:
                computed = yield from self.replay(
                    job, live, thread, context, self._core.request_of(thread.parent).request_id
                )
            live.closing.discard(thread)
            if held := self.taken_for(thread, job, computed):
                live.held[thread] = held
                closed(live, thread)

        live.closing.add(thread)
        self._jobs.start(live, work)
        return False

    def stitched(self, live: LiveFamily, held: dict[Branch, kv.HeldBlocks]) -> kv.Stitched:
        """The context after a join of the threads (in outline order) whose blocks are handed over."""
        start, *others = (
            kv.KVSpan(
                blocks,
                t.fork_len + num_skipped(t, is_first=False) if i else 0,
                t.fork_len + len(joining.own_ids(live, t)),
            )
            for i, (t, blocks) in enumerate(held.items())
        )
        return kv.stitch(self._core.kv_cache_manager, start, others)

    def taken_for(self, branch: Branch, job: KVJob, computed: kv.HeldBlocks) -> kv.HeldBlocks | None:
        """What ``job`` has computed; None, and it is released, if ``branch`` was cancelled meanwhile."""
        held = job.take(computed)
        if branch.is_live:
            return held
        kv.release(self._core.kv_cache_manager, held)
        return None

    def replay(
        self, job: KVJob, live: LiveFamily, thread: Branch, context: list[int], source: Source
    ) -> Part:
        """The KV of the ``context`` of a thread that has ended, on ``source``."""
        start, offsets = yield from self.replay_forks(job, live, thread, context, source)
        return (yield self.fill(context, start, source, thread, offsets))

    def replay_forks(
        self, job: KVJob, live: LiveFamily, branch: Branch, context: list[int], source: Source
    ) -> Generator[PrefillRequest, kv.HeldBlocks, tuple[kv.Stitched | None, Offsets]]:
        """The KV up to after the last join of ``branch`` (None: it has none), and the offsets there."""
        start, offsets = None, start_offsets(branch)
        for threads in branch.joined_forks:
            fork_len = threads[0].fork_len
            prefix = yield self.fill(context[:fork_len], start, source, branch, offsets)
            computed = {}
            for thread in threads:
                own = [*context[:fork_len], *joining.own_ids(live, thread)]
                computed[thread] = yield from self.replay(job, live, thread, own, prefix)
            start = self.stitched(live, {t: job.take(held) for t, held in computed.items()})
            offsets = ((0, joining.offset_behind(live, threads)),)
            kv.release(self._core.kv_cache_manager, job.take(prefix))
        return start, offsets

    def fill(
        self, context: list[int], start: kv.Stitched | None, source: Source, branch: Branch, offsets: Offsets
    ) -> PrefillRequest:
        paths, hashes = path_parts(branch), self._known_hashes(branch)
        if start is not None:
            return PrefillRequest(
                context, start, offsets=offsets, paths=paths, is_linear=False, known_hashes=hashes
            )
        needed, is_linear = num_inherited(branch) if isinstance(source, str) else 0, source is None
        return PrefillRequest(
            context, None, source, branch.fork_len, needed, offsets, paths, is_linear, hashes
        )

    def _known_hashes(self, branch: Branch) -> Sequence[BlockHash]:
        """Those of the blocks with which ``branch`` began: of its parent, if that is there still."""
        parent = branch.parent
        if parent is None or not parent.is_live or parent.request_id not in self._core.requests:
            return ()
        return self._core.hashes_before(self._core.request_of(parent), branch.fork_len)
