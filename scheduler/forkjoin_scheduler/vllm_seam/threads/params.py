"""With which sampling parameters a thread starts, and a branch goes on."""

from __future__ import annotations

from typing import Any

from vllm.sampling_params import StructuredOutputsParams

from forkjoin_scheduler.dialects.dialect import SamplingOverrides
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts.answers import own_constraint
from forkjoin_scheduler.vllm_seam.threads.sampling import (
    resumed_params,
    thread_params,
    with_logprobs,
    with_stops,
)


class Params:
    """Works out the parameters of a family's requests. Keeps nothing."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def behind_join(self, live: LiveFamily, branch: Branch, room: int) -> Any:
        """Those of a ``branch`` that goes on behind its threads, with ``room`` tokens left in its context."""
        if branch is not live.family.root:
            return self.of_thread(live, branch, room)
        params = resumed_params(
            live.fj_params.sampling_params,
            live.dialect.sampling.after_join,
            max_tokens=live.budget(branch, room),
            generated=self._num_counted(live, branch),
            salt=live.next_salt(branch),
        )
        return with_stops(params, live.fj_params.bound_dialect.stop_ids)

    def of_given(self, live: LiveFamily, branch: Branch, room: int) -> Any:
        """Those of a ``branch`` that goes on after what it was given, with ``room`` tokens left."""
        if branch.plan is not None or branch.num_joined:
            return self.behind_join(live, branch, room)
        params = resumed_params(
            live.fj_params.sampling_params,
            SamplingOverrides(),
            max_tokens=live.budget(branch, room),
            generated=self._num_counted(live, branch),
            salt=live.next_salt(branch),
        )
        return with_stops(params, live.fj_params.bound_dialect.stop_ids)

    def of_thread(self, live: LiveFamily, thread: Branch, room: int) -> Any:
        """Those of a ``thread`` with ``room`` tokens left in its context."""
        assert thread.plan is not None
        params = thread_params(
            live.fj_params.sampling_params,
            live.dialect.sampling.thread,
            end_ids=live.fj_params.bound_dialect.end_ids(thread.plan),
            max_tokens=live.budget(thread, room),
            generated=self._num_counted(live, thread),
            salt=live.next_salt(thread),
            structured=self._structured_of(live, thread),
            not_written=live.fj_params.not_in_threads,
        )
        if live.pruner is not None:
            with_logprobs(
                params,
                live.pruner.num_logprobs,
                self._core.scheduler.vllm_config.model_config.max_logprobs,
            )
        return params

    @staticmethod
    def _num_counted(live: LiveFamily, branch: Branch) -> int:
        """Tokens that count towards the min_tokens of ``branch``: its own, if it is an answer by itself."""
        is_answer = live.dialect.join.threads_are_answers
        return branch.num_generated if is_answer else live.family.num_generated

    @staticmethod
    def _structured_of(live: LiveFamily, thread: Branch) -> StructuredOutputsParams | None:
        """What the text of a thread is to obey."""
        is_answer = live.dialect.join.threads_are_answers
        of_request = live.fj_params.sampling_params.structured_outputs if is_answer else None
        branch = live.fj_params.options.branch_of(thread.sibling_index)
        return (None if branch is None else own_constraint(branch)) or of_request
