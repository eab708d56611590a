"""Reports a step's outputs to the machines of their families."""

from __future__ import annotations

from msgspec.structs import replace
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.outputs import LogprobsLists

from forkjoin_scheduler.errors import NoGrammar
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.machine import writing
from forkjoin_scheduler.machine.output_token import OutputToken
from forkjoin_scheduler.publish.events import ROOT
from forkjoin_scheduler.vllm_seam.cache.kv_jobs import KVJobs
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.front_end.outputs import certain
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.threads.forking import Forks
from forkjoin_scheduler.vllm_seam.threads.performing import Performing

#: What is asked of each token of each thread. Looked up here: in an enum that takes as long as a call.
_DECODING, _ERROR = BranchState.DECODING, FinishReason.ERROR


class Taking:
    """Takes the outputs that are not for the front end as they are. Keeps nothing."""

    def __init__(self, core: Core, jobs: KVJobs, forks: Forks, performing: Performing) -> None:
        self._core = core
        self._jobs = jobs
        self._forks = forks
        self._performing = performing

    def take(self, output: EngineCoreOutput) -> bool:
        """Take an output that is not for the front end as it is; returns False for every other."""
        request_id = output.request_id
        if request_id in self._core.threads:
            live, thread = self._core.threads[request_id]
            self._take_thread(live, thread, output)
            return True
        if request_id in self._jobs.prefills:
            if output.finished:
                self._jobs.done(self._jobs.prefills[request_id])
            return True
        root = self._core.live.get(request_id)
        return root is not None and root.buffers_parent_output and self._take_root(root, output)

    def part_end(self, ends: list[EngineCoreOutput], output: EngineCoreOutput) -> bool:
        """Put into ``ends``, as an output of its own, an end of sequence that was not sampled.

        vLLM took a row of logprobs for it with those of ``output``, which is another request's, or none.
        Returns False: this takes nothing.
        """
        rows, num_sampled = output.new_logprobs, self._num_sampled(output)
        if rows is None or num_sampled == len(output.new_token_ids):
            return False
        eos = output.new_token_ids[num_sampled]
        end = replace(
            output, new_token_ids=[eos], new_logprobs=certain(eos), new_prompt_logprobs_tensors=None
        )
        end.prefill_stats = end.events = end.prompt_token_id_logprobs = None
        ends.append(end)
        output.new_token_ids = output.new_token_ids[:num_sampled]
        output.new_logprobs = rows.slice_request(0, num_sampled)
        output.finish_reason = output.stop_reason = None
        output.kv_transfer_params = output.ec_transfer_params = output.spec_decode_metrics = None
        return False

    def _num_sampled(self, output: EngineCoreOutput) -> int:
        """How many of its tokens a request has sampled: all but what ``hearing.py`` puts behind its end."""
        assert self._core.bound_dialect is not None
        is_put = output.stop_reason in self._core.bound_dialect.stop_texts
        return len(output.new_token_ids) - (is_put and output.request_id not in self._core.threads)

    def record(self, output: EngineCoreOutput) -> bool:
        """Record what a request itself has written that wants its tree; returns False: this takes nothing."""
        recording = self._core.recordings.get(output.request_id)
        if recording is not None:
            logprobs = output.new_logprobs
            rows = None if logprobs is None else _rows(self._num_sampled(output), logprobs)
            recording.wrote(ROOT, output.new_token_ids, rows)
        return False

    def _take_thread(self, live: LiveFamily, thread: Branch, output: EngineCoreOutput) -> None:
        """This runs for each token of each thread: what few of them need is asked of few."""
        if thread.state is not _DECODING:
            return
        if output.finish_reason is _ERROR:
            raise NoGrammar(
                f"{thread.request_id}: expected a grammar that compiles and allows a next token, got another"
            )
        token_ids, rows = output.new_token_ids, None
        if output.new_logprobs is not None and live.terms.wants_logprobs:
            # threads may have logprobs that only a pruning policy wants
            rows = _rows(len(token_ids), output.new_logprobs)
        effects = writing.thread_wrote(
            live,
            thread,
            token_ids,
            None if output.finish_reason is None else self._end_of(live, thread, output),
            stop_reason=output.stop_reason,
            rows=rows,
            likely=() if live.pruner is None else self._likely(live, output),
            forks=self._forks.beside.pop(output.request_id, ()) if self._forks.beside else (),
        )
        if effects is not None:
            self._performing.perform(live, effects)

    @staticmethod
    def _likely(live: LiveFamily, output: EngineCoreOutput) -> list[list[float]]:
        """The logprobs of the most likely tokens at each place, as many as the pruning policy wants.

        None where the request has those of tokens that it names instead.
        """
        assert live.pruner is not None
        num, logprobs = live.pruner.num_logprobs, output.new_logprobs
        if not num or logprobs is None or live.fj_params.sampling_params.logprob_token_ids:
            return []
        rows: list[list[float]] = logprobs.logprobs[:, 1 : num + 1].tolist()  # after the sampled one's
        return rows

    def _take_root(self, live: LiveFamily, output: EngineCoreOutput) -> bool:
        """The root's own tokens where threads run beside it.

        Returns False, with the others taken off, if some of them leave as any request's.
        """
        num_led, live.num_led = live.num_led, 0
        effects = writing.root_wrote(
            live,
            _pieces(output.new_token_ids, output.new_logprobs),
            None if output.finish_reason is None else str(output.finish_reason),
            stop_reason=output.stop_reason,
            num_led=num_led,
            forks=self._forks.beside.pop(output.request_id, ()),
        )
        self._performing.perform(live, effects)
        if num_led:
            output.new_token_ids = output.new_token_ids[:num_led]
            if output.new_logprobs is not None:
                output.new_logprobs = output.new_logprobs.slice_request(0, num_led)
            output.finish_reason = output.stop_reason = None
        return not num_led

    def _end_of(self, live: LiveFamily, thread: Branch, output: EngineCoreOutput) -> ThreadEnd:
        assert thread.plan is not None
        if output.finish_reason is not FinishReason.STOP:
            return ThreadEnd.LENGTH
        end_ids = live.fj_params.bound_dialect.end_ids(thread.plan)
        # Also one that ends threads ends the request, if its client says so: as in vLLM.
        is_clients = output.stop_reason in (live.fj_params.sampling_params.stop_token_ids or ())
        if thread.plan.end is not None and output.stop_reason == thread.plan.end:
            return ThreadEnd.STOP
        if output.stop_reason in end_ids and not is_clients:
            return ThreadEnd.STOP
        is_answer = live.dialect.join.threads_are_answers  # which the request's own stop tokens end, too
        if is_answer or output.stop_reason is None or output.stop_reason in self._core.eos_ids:
            return ThreadEnd.STOP if thread.plan.end is None else ThreadEnd.EOS
        return ThreadEnd.REQUEST_STOP


def _rows(num_tokens: int, logprobs: LogprobsLists) -> list[LogprobsLists]:
    """The row of each token."""
    return [logprobs.slice_request(i, 1) for i in range(num_tokens)]


def _pieces(token_ids: list[int], logprobs: LogprobsLists | None) -> list[OutputToken]:
    """What goes into a transcript of tokens."""
    if logprobs is None:
        return list(map(OutputToken, token_ids))
    return list(map(OutputToken, token_ids, _rows(len(token_ids), logprobs)))
