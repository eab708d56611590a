"""A thread starts: a request of its own, on its parent's KV."""

from __future__ import annotations

from dataclasses import replace

from vllm.v1.request import Request

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import queues
from forkjoin_scheduler.vllm_seam.starts.answers import Answers
from forkjoin_scheduler.vllm_seam.starts.requests import new_request
from forkjoin_scheduler.vllm_seam.threads.params import Params


class Starting:
    """Starts threads. Keeps nothing."""

    def __init__(self, core: Core, answers: Answers, placing: Placing, params: Params) -> None:
        self._core = core
        self._answers = answers
        self._placing = placing
        self._params = params

    def start(self, live: LiveFamily, thread: Branch, parent: Request) -> None:
        """Queue a request for ``thread``, on the KV of ``parent``."""
        assert thread.plan is not None
        token_ids = parent._all_token_ids[: thread.fork_len]
        token_ids += thread.plan.header_ids
        params = self._params.of_thread(live, thread, live.room(thread, len(token_ids), thread.offset))
        hashes = self._core.hashes_before(parent, thread.fork_len)
        request = new_request(live.request, thread.request_id, token_ids, params, hashes)
        asked = live.fj_params.options.branch_of(thread.sibling_index)
        self._answers.begin_thread(
            request, live.request, has_own=asked is not None and asked.structured is not None
        )
        self._core.threads[request.request_id] = (live, thread)
        fj_params = replace(live.fj_params, since=len(token_ids), at_prompt=False, given=None)
        self._core.fj_params[request.request_id] = fj_params
        if live.dialect.join.moves_kv:
            self._placing.start_thread(request, thread, parent)
        queues.start(self._core.scheduler, request)
