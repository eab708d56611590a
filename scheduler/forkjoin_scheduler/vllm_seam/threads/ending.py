"""How threads and families end: what is told of it, and what is kept of their KV."""

from __future__ import annotations

from vllm.v1.engine import FinishReason
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.joins.joined import body, end_policy, written
from forkjoin_scheduler.machine.family import Branch, BranchState
from forkjoin_scheduler.machine.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import ThreadEnded
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.ahead import JoinAhead
from forkjoin_scheduler.vllm_seam.cache.jobs import Jobs
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.cache.stitching import Stitching
from forkjoin_scheduler.vllm_seam.core import CAPPED, STOPPED, Core
from forkjoin_scheduler.vllm_seam.front_end.outputs import injected
from forkjoin_scheduler.vllm_seam.live import LiveFamily


class Ends:
    """Ends threads and families. Keeps nothing."""

    def __init__(
        self, core: Core, placing: Placing, jobs: Jobs, stitching: Stitching, ahead: JoinAhead
    ) -> None:
        self._core = core
        self._placing = placing
        self._jobs = jobs
        self._stitching = stitching
        self._ahead = ahead

    def hold_back(self, request: Request) -> bool:
        """Hold the blocks of a ``request`` that has ended, if a join or a job needs them."""
        if job := self._jobs.fills.get(request.request_id):
            assert job.fill is not None
            job.loose.append(kv.hold(self._core.kv_cache_manager, request, len(job.fill.token_ids)))
            return True
        if request.request_id in self._placing.to_stitch:  # its KV was not put together, and will not be now
            self._placing.unstitch(request.request_id)
            return False
        entry = self._core.threads.get(request.request_id)
        # One that was preempted with its last token in flight ends without blocks.
        if (
            entry
            and kv.has_blocks(self._core.kv_cache_manager, request)
            and entry[1].state is BranchState.DECODING
            and self.needs_blocks_of(*entry)
        ):
            live, thread = entry
            live.held[thread] = kv.hold(self._core.kv_cache_manager, request, request.num_tokens)
            return True
        return False

    def needs_blocks_of(self, live: LiveFamily, thread: Branch) -> bool:
        """A stitched join takes all threads' blocks; otherwise the first's text is a true prefix."""
        return live.dialect.join.keeps_blocks_of(live.dialect, thread)

    def end_thread(self, live: LiveFamily, thread: Branch, end: ThreadEnd) -> None:
        """Tell of the end of ``thread`` and let its successors into the transcript."""
        wrote_it_itself = thread.state is BranchState.DECODING
        self._core.threads.pop(thread.request_id, None)
        self._placing.offsets.pop(thread.request_id, None)
        thread.end = end
        transcript = live.transcripts[thread]
        policy = end_policy(live.dialect, end)
        if end is not ThreadEnd.REQUEST_STOP:
            injected_ids = body(live.dialect, thread, self._core.tokenizer)[len(written(thread)) :]
            transcript.push(injected(injected_ids))
        if end is ThreadEnd.REQUEST_STOP:
            transcript.cut()
            self._cut_behind(live, thread)
        transcript.close()
        if live.vote is None:
            live.transcripts.pop(thread)
        elif end is not ThreadEnd.CUT:
            live.vote.read(thread)
        self._tell_end(live, thread, policy)
        held = live.held.pop(thread, None)
        if held is not None:
            self._trim(live, thread, held)
        if live.dialect.join.moves_kv and end is not ThreadEnd.REQUEST_STOP and wrote_it_itself:
            if not self._stitching.close_kv(live, thread, held, lambda of, ended: self.closed(of, ended)):
                return
        elif held is not None:
            live.held[thread] = held
        self.closed(live, thread)

    def _trim(self, live: LiveFamily, thread: Branch, held: kv.HeldBlocks) -> None:
        """Of what a thread's blocks hold, an end of sequence does not count, nor what may differ by mode.

        The token sampled last has KV in async scheduling only.
        """
        assert thread.plan is not None
        kept = thread.fork_len + len(thread.plan.header_ids) + len(thread.token_ids)
        if thread.end is ThreadEnd.EOS or thread.plan.end is None or not live.dialect.join.moves_kv:
            kept -= 1
        held.num_tokens = min(held.num_tokens, kept)

    def closed(self, live: LiveFamily, thread: Branch) -> None:
        """All KV of ``thread``, which has ended, is there: its parent may join when the others have ended."""
        assert thread.parent is not None
        assert thread.end is not None
        live.family.end(thread, thread.end, cancels=live.dialect.join.waits)
        self._ahead.prefill(live, thread.parent)

    def cut_slower(self, live: LiveFamily) -> None:
        """Where the first thread to end is the last to run: cut the others off where they are.

        One that has forked is cut from its leaves: it joins what its threads wrote so far, so that nothing
        of it is lost, and is cut in a later step.
        """
        for branch in live.parked():
            if any(t.end in (ThreadEnd.STOP, ThreadEnd.EOS, ThreadEnd.LENGTH) for t in branch.waits_for):
                slower = [t for thread in branch.waits_for for t in thread.subtree()]
                for thread in slower:
                    if thread.state is BranchState.DECODING and thread.request_id in self._core.threads:
                        self.stop(live, thread, ThreadEnd.CUT)

    def stop(self, live: LiveFamily, thread: Branch, end: ThreadEnd) -> None:
        """End ``thread``, which decodes or waits to, where it is; what it wrote is joined."""
        self._core.scheduler.end_requests([thread.request_id], STOPPED)
        self.end_thread(live, thread, end)

    @staticmethod
    def _tell_end(live: LiveFamily, thread: Branch, policy: Policy | None = None) -> None:
        if thread in live.told:
            return  # cancelled while its last tokens got their KV
        assert thread.end is not None
        num_tokens = thread.num_generated
        live.tell(ThreadEnded(index=thread.index, reason=thread.end, num_tokens=num_tokens, policy=policy))
        live.told.add(thread)

    def _cut_behind(self, live: LiveFamily, thread: Branch) -> None:
        """The answer ends in ``thread``: cancel its later siblings and all beneath them."""
        assert thread.parent is not None
        siblings = next(fork for fork in thread.parent.forks if thread in fork)
        for sibling in siblings[thread.position + 1 :]:
            if sibling.is_live:
                self.cancel(live, sibling, ThreadEnd.CANCELLED)

    def cancel(self, live: LiveFamily, thread: Branch, end: ThreadEnd) -> None:
        """End ``thread`` from outside, in this way, and all beneath it."""
        cancelled = [thread, *live.family.end(thread, end)]
        self._core.scheduler.end_requests(self.forget(live, cancelled), RequestStatus.FINISHED_ABORTED)

    def end_family(self, live: LiveFamily, status: RequestStatus) -> None:
        """End the request here, with all its threads; what they wrote so far leaves in order."""
        for thread, transcript in live.transcripts.items():
            if thread is not live.family.root:
                transcript.close()
        ids = [live.family.request_id, *self.cancel_threads(live)]
        self._core.scheduler.end_requests(ids, status)
        live.finish_reason = _FINISH_REASONS[status]

    def cancel_threads(self, live: LiveFamily) -> list[str]:
        """End the family's tree; returns the ids of the threads that are to be freed."""
        self._jobs.drop(live)
        kv.release(self._core.kv_cache_manager, *live.take_held(list(live.held)))
        self._placing.unstitch(live.family.request_id)
        self._placing.offsets.pop(live.family.request_id, None)
        family = live.family
        if family.root.is_live:
            return self.forget(live, family.end(family.root, ThreadEnd.CANCELLED))
        cancelled = []
        for thread in family.threads:
            if thread.is_live:
                cancelled += [thread, *family.end(thread, ThreadEnd.CANCELLED)]
        return self.forget(live, cancelled)

    def forget(self, live: LiveFamily, cancelled: list[Branch]) -> list[str]:
        """Tell of the end of ``cancelled`` threads; returns their request ids.

        What their own threads hold that had ended before them, no join will need.
        """
        kv.release(
            self._core.kv_cache_manager,
            *live.take_held([t for thread in cancelled for t in thread.subtree()]),
        )
        for thread in cancelled:
            self._core.threads.pop(thread.request_id, None)
            self._placing.offsets.pop(thread.request_id, None)
            self._placing.unstitch(thread.request_id)
            self._tell_end(live, thread)
        return [t.request_id for t in cancelled]


_FINISH_REASONS = {STOPPED: FinishReason.STOP, CAPPED: FinishReason.LENGTH}
