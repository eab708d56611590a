"""What a step brought threads: their tokens go into the transcript, in outline order."""

from __future__ import annotations

from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import RequestStatus

from forkjoin_scheduler.errors import NoGrammar
from forkjoin_scheduler.machine.family import Branch, BranchState
from forkjoin_scheduler.machine.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import Tokens
from forkjoin_scheduler.vllm_seam.cache.jobs import Jobs
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.front_end.outputs import Piece, injected
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.threads.ending import Ends
from forkjoin_scheduler.vllm_seam.threads.forking import Forks
from forkjoin_scheduler.vllm_seam.threads.planning import Planning

#: What is asked of each token of each thread. Looked up here: in an enum that takes as long as a call.
_DECODING, _ERROR = BranchState.DECODING, FinishReason.ERROR


class Taking:
    """Takes the outputs that are not for the front end as they are. Keeps nothing."""

    def __init__(self, core: Core, jobs: Jobs, ends: Ends, planning: Planning, forks: Forks) -> None:
        self._core = core
        self._jobs = jobs
        self._ends = ends
        self._planning = planning
        self._forks = forks

    def take(self, output: EngineCoreOutput) -> bool:
        """Take an output that is not for the front end as it is; returns False for every other."""
        request_id = output.request_id
        if request_id in self._core.threads:
            live, thread = self._core.threads[request_id]
            self._take_thread(live, thread, output)
            return True
        if request_id in self._jobs.fills:
            if output.finished:
                self._jobs.done(self._jobs.fills[request_id])
            return True
        root = self._core.live.get(request_id)
        return root is not None and root.takes_over and self._take_root(root, output)

    def _take_thread(self, live: LiveFamily, thread: Branch, output: EngineCoreOutput) -> None:
        """This runs for each token of each thread: what few of them need is asked of few."""
        if thread.state is not _DECODING:
            return
        if output.finish_reason is _ERROR:
            raise NoGrammar(
                f"{thread.request_id}: expected a grammar that compiles and allows a next token, got another"
            )
        # Several threads end a step together: what is over the budget was never generated.
        wrote = output.new_token_ids
        token_ids = shown = wrote[: live.family.remaining]
        live.family.generated(thread, token_ids)
        if live.clocks:
            live.clock_token(thread)
        if live.pruner is not None:
            live.pruner.wrote(thread, self._likely(live, output))
        end = None if output.finish_reason is None else self._end_of(live, thread, output)
        if token_ids != wrote:
            live.is_overdrawn = True
            end = None if end is None else ThreadEnd.LENGTH
        if end is not None and _is_by_eos(thread, end):
            shown = token_ids[:-1]
        if live.family.include_threads and shown:
            live.tell(Tokens(index=thread.index, token_ids=shown))
        # threads may have logprobs that only a pruning policy wants
        if output.new_logprobs is None or live.wish.params.num_logprobs is None:
            pieces = list(map(Piece, shown))
        else:
            pieces = _pieces(shown, output.new_logprobs)
        if end is not None and end is ThreadEnd.REQUEST_STOP:
            # The answer may end later than this thread; its stop token leaves with the end.
            live.stop_reason = output.stop_reason
            live.stop_piece = pieces.pop() if pieces else None
        if self._planning.beside or live.newlines:
            self._push_run(live, thread, pieces)
        else:
            live.transcripts[thread].push(pieces)
        if end is not None:
            self._ends.end_thread(live, thread, end)

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
        pieces = _pieces(output.new_token_ids, output.new_logprobs)
        live.num_led = 0
        if output.finish_reason is FinishReason.STOP:
            # It leaves with the end of the answer, if no limit is in its way.
            live.own_stop_piece = pieces.pop() if pieces else None
        self._push_run(live, root, pieces, num_led)
        if output.finished:
            live.own_finish, live.stop_reason = output.finish_reason, output.stop_reason
            # What was to be had on demand nobody will ask for any more; spliced threads go on.
            cancelled = live.family.end(
                root, ThreadEnd.STOP, cancels=live.dialect.join.threads_end_with_parent
            )
            self._core.scheduler.end_requests(
                self._ends.forget(live, cancelled), RequestStatus.FINISHED_ABORTED
            )
        if num_led:
            output.new_token_ids = output.new_token_ids[:num_led]
            if output.new_logprobs is not None:
                output.new_logprobs = output.new_logprobs.slice_request(0, num_led)
            output.finish_reason = output.stop_reason = None
        return not num_led

    def _push_run(self, live: LiveFamily, branch: Branch, pieces: list[Piece], num_led: int = 0) -> None:
        """Append what ``branch`` has written in a step, from token ``num_led`` on, and fork it on the way."""
        at = num_led
        for fork in self._planning.beside.pop(branch.request_id, ()):
            if fork.num_in_run > len(pieces):
                break  # the budget ended before it
            self._push(live, branch, pieces[at : fork.num_in_run])
            self._forks.fork(live, branch, fork)
            at = fork.num_in_run
        self._push(live, branch, pieces[at:])

    def _push(self, live: LiveFamily, branch: Branch, pieces: list[Piece]) -> None:
        """Append what ``branch`` has written to its transcript, behind the newlines that it should have."""
        if live.newlines:
            pieces = self._behind_newlines(live, branch, pieces)
        live.transcripts[branch].push(pieces)

    def _behind_newlines(self, live: LiveFamily, branch: Branch, pieces: list[Piece]) -> list[Piece]:
        """The same ``pieces``, with those newlines that ``branch`` should have before them and has not."""
        missing = live.newlines.pop(branch, 0)
        for at, piece in enumerate(pieces if missing else []):
            text = self._core.tokenizer.decode([piece.token_id])
            behind = text.lstrip("\n")
            missing = max(missing - (len(text) - len(behind)), 0)
            if behind:
                # the last token of it: some tokenizers begin every text with a space
                newline = self._core.tokenizer.encode("\n")[-1:]
                pieces = [*pieces[:at], *injected(newline * missing), *pieces[at:]]
                missing = 0
                break
        if missing:
            live.newlines[branch] = missing
        return pieces

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
        is_answer = live.dialect.join.threads_are_answers  # which the request's own stop tokens end, too
        if is_answer or output.stop_reason is None or output.stop_reason in self._core.eos_ids:
            return ThreadEnd.STOP if thread.plan.end is None else ThreadEnd.EOS
        return ThreadEnd.REQUEST_STOP


def _is_by_eos(thread: Branch, end: ThreadEnd) -> bool:
    """Whether ``thread`` has ended in an end of sequence, which is not shown."""
    assert thread.plan is not None
    return end is ThreadEnd.EOS or (end is ThreadEnd.STOP and thread.plan.end is None)


def _pieces(token_ids: list[int], logprobs: LogprobsLists | None) -> list[Piece]:
    """What goes into a transcript of tokens, each with its row of ``logprobs``."""
    if logprobs is None:
        return list(map(Piece, token_ids))
    return [Piece(token_id, logprobs.slice_request(i, 1)) for i, token_id in enumerate(token_ids)]
