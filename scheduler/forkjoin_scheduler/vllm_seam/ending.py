"""What a thread's tokens and its end do: the transcript, what is kept of its KV, the end of the family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.dialect import Context, JoinKind, Policy
from forkjoin_scheduler.errors import NoGrammar
from forkjoin_scheduler.events import ThreadEnded, Tokens
from forkjoin_scheduler.family import Branch, BranchState, ThreadEnd
from forkjoin_scheduler.join import body, end_policy, written
from forkjoin_scheduler.vllm_seam import kv
from forkjoin_scheduler.vllm_seam.ahead import Ahead
from forkjoin_scheduler.vllm_seam.core import CAPPED, STOPPED
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.outputs import Piece, injected
from forkjoin_scheduler.vllm_seam.planned import Fork


class Ending(Ahead):
    """Takes the outputs of threads, and ends threads and families."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        #: Forks in what a request wrote in this step, in order, where it goes on beside its threads.
        self._beside: dict[str, list[Fork]] = {}

    # ---- outputs ---------------------------------------------------------------------------

    def _take(self, output: EngineCoreOutput) -> bool:
        """Take an output that is not for the front end as it is; returns False for every other."""
        if job := self._fills.get(output.request_id):
            if output.finished:
                self._fill_done(job)
            return True
        if entry := self._threads.get(output.request_id):
            self._take_thread(*entry, output)
            return True
        live = self._live.get(output.request_id)
        return live is not None and live.takes_over and self._take_root(live, output)

    def _take_thread(self, live: LiveFamily, thread: Branch, output: EngineCoreOutput) -> None:
        if thread.state is not BranchState.DECODING:
            return
        assert thread.plan is not None
        if output.finish_reason is FinishReason.ERROR:
            raise NoGrammar(
                f"{thread.request_id}: expected a grammar that compiles and allows a next token, got another"
            )
        # Several threads end a step together: what is over the budget was never generated.
        token_ids = output.new_token_ids[: live.family.remaining]
        live.family.generated(thread, token_ids)
        live.clock_token(thread)
        if live.pruner is not None:
            live.pruner.wrote(thread, self._likely(live, output))
        end = self._end_of(live, thread, output) if output.finished else None
        if len(token_ids) < len(output.new_token_ids):
            live.is_overdrawn = True
            end = None if end is None else ThreadEnd.LENGTH
        by_eos = end is ThreadEnd.EOS or (end is ThreadEnd.STOP and thread.plan.end is None)
        shown = token_ids[:-1] if by_eos else token_ids
        if live.family.include_threads and shown:
            live.tell(Tokens(index=thread.index, token_ids=shown))
        # threads may have logprobs that only a pruning policy wants
        wanted = None if live.wish.params.num_logprobs is None else output.new_logprobs
        pieces = [Piece(t, _row(wanted, i)) for i, t in enumerate(shown)]
        if end is ThreadEnd.REQUEST_STOP:
            # The answer may end later than this thread; its stop token leaves with the end.
            live.stop_reason = output.stop_reason
            live.stop_piece = pieces.pop() if pieces else None
        self._push_run(live, thread, pieces)
        if end is not None:
            self._end_thread(live, thread, end)

    @staticmethod
    def _likely(live: LiveFamily, output: EngineCoreOutput) -> list[list[float]]:
        """The logprobs of the most likely tokens at each place, as many as the pruning policy wants.

        None where the request has those of tokens that it names instead.
        """
        assert live.pruner is not None
        num, logprobs = live.pruner.policy.num_logprobs, output.new_logprobs
        if not num or logprobs is None or live.wish.params.logprob_token_ids:
            return []
        rows: list[list[float]] = logprobs.logprobs[:, 1 : num + 1].tolist()  # behind the sampled one's
        return rows

    def _take_root(self, live: LiveFamily, output: EngineCoreOutput) -> bool:
        """The root's own tokens where threads run beside it: they wait for their turn too.

        Returns False, with the others taken off, if some of them leave as any request's: those up to its
        first call, for until then nobody could know that it would fork.
        """
        root, num_led = live.family.root, live.num_led
        pieces = [Piece(t, _row(output.new_logprobs, i)) for i, t in enumerate(output.new_token_ids)]
        live.num_led = 0
        if output.finish_reason is FinishReason.STOP:
            # It leaves with the end of the answer, if no limit is in its way.
            live.own_stop_piece = pieces.pop() if pieces else None
        self._push_run(live, root, pieces, num_led)
        if output.finished:
            live.own_finish, live.stop_reason = output.finish_reason, output.stop_reason
            # What was to be had on demand nobody will ask for any more; spliced threads go on.
            cancelled = live.family.end(
                root, ThreadEnd.STOP, cancels=live.dialect.join.kind is JoinKind.ON_DEMAND
            )
            super().finish_requests(self._forget(live, cancelled), RequestStatus.FINISHED_ABORTED)
        if num_led:
            output.new_token_ids = output.new_token_ids[:num_led]
            if output.new_logprobs is not None:
                output.new_logprobs = output.new_logprobs.slice_request(0, num_led)
            output.finish_reason = output.stop_reason = None
        return not num_led

    def _push_run(self, live: LiveFamily, branch: Branch, pieces: list[Piece], num_led: int = 0) -> None:
        """Append what ``branch`` has written in a step, from token ``num_led`` on, and fork it on the way."""
        at = num_led
        for fork in self._beside.pop(branch.request_id, ()):
            if fork.num_in_run > len(pieces):
                break  # the budget ended before it
            self._push(live, branch, pieces[at : fork.num_in_run])
            self._fork(live, branch, fork)
            at = fork.num_in_run
        self._push(live, branch, pieces[at:])

    if TYPE_CHECKING:

        def _fork(self, live: LiveFamily, branch: Branch, fork: Fork) -> None:
            """Of the layer that forks: start the threads."""

    def _push(self, live: LiveFamily, branch: Branch, pieces: list[Piece]) -> None:
        """Append what ``branch`` has written to its transcript, behind the newlines that it should have."""
        missing = live.newlines.pop(branch, 0)
        for at, piece in enumerate(pieces if missing else []):
            text = self._tokenizer.decode([piece.token_id])
            behind = text.lstrip("\n")
            missing = max(missing - (len(text) - len(behind)), 0)
            if behind:
                # the last token of it: some tokenizers begin every text with a space
                newline = self._tokenizer.encode("\n")[-1:]
                pieces = [*pieces[:at], *injected(newline * missing), *pieces[at:]]
                missing = 0
                break
        if missing:
            live.newlines[branch] = missing
        live.transcripts[branch].push(pieces)

    def _end_of(self, live: LiveFamily, thread: Branch, output: EngineCoreOutput) -> ThreadEnd:
        assert thread.plan is not None
        if output.finish_reason is not FinishReason.STOP:
            return ThreadEnd.LENGTH
        end_id = live.wish.spoken.end_id(thread.plan)
        # Also one that ends threads ends the request, if its client says so: as in vLLM.
        is_clients = output.stop_reason in (live.wish.params.stop_token_ids or ())
        if thread.plan.end is not None and output.stop_reason == thread.plan.end:
            return ThreadEnd.STOP
        if end_id is not None and output.stop_reason == end_id and not is_clients:
            return ThreadEnd.STOP
        is_answer = live.dialect.join.kind is JoinKind.VOTE  # which the request's own stop tokens end, too
        if is_answer or output.stop_reason is None or output.stop_reason in self._eos_ids:
            return ThreadEnd.STOP if thread.plan.end is None else ThreadEnd.EOS
        return ThreadEnd.REQUEST_STOP

    # ---- ends ------------------------------------------------------------------------------

    def _free_request_blocks(self, request: Request) -> None:
        """Blocks that a join or a job needs are held back."""
        is_held = False
        if request.status in (STOPPED, CAPPED):
            try:
                is_held = self._hold_back(request)
            except Exception as error:
                self._contain("hold", error, request)
        if not is_held:
            super()._free_request_blocks(request)

    def _hold_back(self, request: Request) -> bool:
        """Hold the blocks of a ``request`` that has ended, if a join or a job needs them."""
        if job := self._fills.get(request.request_id):
            assert job.fill is not None
            job.loose.append(kv.hold(self.kv_cache_manager, request, len(job.fill.token_ids)))
            return True
        if request.request_id in self._to_stitch:  # its KV was not put together, and will not be now
            self._unstitch(request.request_id)
            return False
        entry = self._threads.get(request.request_id)
        # One that was preempted with its last token in flight ends without blocks.
        if (
            entry
            and kv.has_blocks(self.kv_cache_manager, request)
            and entry[1].state is BranchState.DECODING
            and self._needs_blocks_of(*entry)
        ):
            live, thread = entry
            live.held[thread] = kv.hold(self.kv_cache_manager, request, request.num_tokens)
            return True
        return False

    def _needs_blocks_of(self, live: LiveFamily, thread: Branch) -> bool:
        """A stitched join takes all threads' blocks; otherwise the first's text is a true prefix."""
        if live.dialect.is_stitched:
            return True
        plan = thread.plan
        assert plan is not None
        return (
            thread.position == 0
            and live.dialect.thread.context is Context.PARENT
            and live.dialect.join.kind is JoinKind.REPREFILL
            and live.dialect.thread.returns is None
            and not live.dialect.join.opened
            and plan.header_ids == plan.joined_header_ids
        )

    def _end_thread(self, live: LiveFamily, thread: Branch, end: ThreadEnd) -> None:
        """Tell of the end of ``thread`` and let its successors into the transcript."""
        wrote_it_itself = thread.state is BranchState.DECODING
        self._threads.pop(thread.request_id, None)
        self._offsets.pop(thread.request_id, None)
        thread.end = end
        transcript = live.transcripts[thread]
        policy = end_policy(live.dialect, end)
        if end is not ThreadEnd.REQUEST_STOP:
            injected_ids = body(live.dialect, thread, self._tokenizer)[len(written(thread)) :]
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
        if live.dialect.is_stitched and end is not ThreadEnd.REQUEST_STOP and wrote_it_itself:
            if not self._close_kv(live, thread, held):
                return
        elif held is not None:
            live.held[thread] = held
        self._closed(live, thread)

    def _trim(self, live: LiveFamily, thread: Branch, held: kv.HeldBlocks) -> None:
        """Of what a thread's blocks hold, an end of sequence does not count, nor what may differ by mode.

        The token sampled last has KV in async scheduling only.
        """
        assert thread.plan is not None
        kept = thread.fork_len + len(thread.plan.header_ids) + len(thread.token_ids)
        if thread.end is ThreadEnd.EOS or thread.plan.end is None or not live.dialect.is_stitched:
            kept -= 1
        held.num_tokens = min(held.num_tokens, kept)

    def _closed(self, live: LiveFamily, thread: Branch) -> None:
        assert thread.parent is not None
        assert thread.end is not None
        live.family.end(thread, thread.end, cancels=live.dialect.join.waits)
        self._prefill_ahead(live, thread.parent)

    def _cut_slower(self, live: LiveFamily) -> None:
        """Where the first thread to end is the last to run: cut the others off where they are.

        One that has forked is cut from its leaves: it joins what its threads wrote so far, so that nothing
        of it is lost, and is cut in a later step.
        """
        for branch in live.parked():
            if any(t.end in (ThreadEnd.STOP, ThreadEnd.EOS, ThreadEnd.LENGTH) for t in branch.waits_for):
                slower = [t for thread in branch.waits_for for t in thread.subtree()]
                for thread in slower:
                    if thread.state is BranchState.DECODING and thread.request_id in self._threads:
                        self._stop(live, thread, ThreadEnd.CUT)

    def _stop(self, live: LiveFamily, thread: Branch, end: ThreadEnd) -> None:
        """End ``thread``, which decodes or waits to, where it is; what it wrote is joined."""
        super().finish_requests([thread.request_id], STOPPED)
        self._end_thread(live, thread, end)

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
                self._cancel(live, sibling, ThreadEnd.CANCELLED)

    def _cancel(self, live: LiveFamily, thread: Branch, end: ThreadEnd) -> None:
        """End ``thread`` from outside, in this way, and all beneath it."""
        cancelled = [thread, *live.family.end(thread, end)]
        super().finish_requests(self._forget(live, cancelled), RequestStatus.FINISHED_ABORTED)

    # ---- the end of the family -------------------------------------------------------------

    def _end_family(self, live: LiveFamily, status: RequestStatus) -> None:
        """End the request here, with all its threads; what they wrote so far leaves in order."""
        for thread, transcript in live.transcripts.items():
            if thread is not live.family.root:
                transcript.close()
        ids = [live.family.request_id, *self._cancel_threads(live)]
        super().finish_requests(ids, status)
        live.finish_reason = _FINISH_REASONS[status]

    def _cancel_threads(self, live: LiveFamily) -> list[str]:
        """End the family's tree; returns the ids of the threads that are to be freed."""
        self._drop_jobs(live)
        self._release_held(live, list(live.held))
        self._unstitch(live.family.request_id)
        self._offsets.pop(live.family.request_id, None)
        family = live.family
        if family.root.is_live:
            return self._forget(live, family.end(family.root, ThreadEnd.CANCELLED))
        cancelled = []
        for thread in family.threads:
            if thread.is_live:
                cancelled += [thread, *family.end(thread, ThreadEnd.CANCELLED)]
        return self._forget(live, cancelled)

    def _forget(self, live: LiveFamily, cancelled: list[Branch]) -> list[str]:
        """Tell of the end of ``cancelled`` threads; returns their request ids.

        What their own threads hold that had ended before them, no join will need.
        """
        self._release_held(live, [t for thread in cancelled for t in thread.subtree()])
        for thread in cancelled:
            self._threads.pop(thread.request_id, None)
            self._offsets.pop(thread.request_id, None)
            self._unstitch(thread.request_id)
            self._tell_end(live, thread)
        return [t.request_id for t in cancelled]


_FINISH_REASONS = {STOPPED: FinishReason.STOP, CAPPED: FinishReason.LENGTH}


def _row(logprobs: LogprobsLists | None, index: int) -> LogprobsLists | None:
    return None if logprobs is None else logprobs.slice_request(index, 1)
