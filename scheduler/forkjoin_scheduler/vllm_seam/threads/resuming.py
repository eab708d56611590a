"""How the request of a parked branch goes on: on KV that is there, the rest prefilled."""

from __future__ import annotations

from vllm.v1.request import Request

from forkjoin_scheduler.machine import effects
from forkjoin_scheduler.publish.events import Joined
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.cache.ahead import EagerJoinPrefill
from forkjoin_scheduler.vllm_seam.cache.placing import Placing
from forkjoin_scheduler.vllm_seam.cache.stitching import Stitching
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import connector, queues
from forkjoin_scheduler.vllm_seam.starts.answers import Answers
from forkjoin_scheduler.vllm_seam.starts.requests import rebase_prompt, truncate
from forkjoin_scheduler.vllm_seam.threads.params import Params


class Resuming:
    """Lets branches go on. Keeps nothing."""

    def __init__(
        self,
        core: Core,
        answers: Answers,
        placing: Placing,
        stitching: Stitching,
        ahead: EagerJoinPrefill,
        params: Params,
    ) -> None:
        self._core = core
        self._answers = answers
        self._placing = placing
        self._stitching = stitching
        self._ahead = ahead
        self._params = params

    def resume(self, live: LiveFamily, effect: effects.Resume) -> None:
        """Let a branch go on after its threads."""
        branch, plan = effect.branch, effect.plan
        request = self._core.request_of(branch)
        if plan.keep is not None:
            self._rewind(request, plan.keep)
        params = self._params.behind_join(live, branch, effect.room)
        num_tokens = request.num_tokens + len(plan.token_ids)
        num_computed_tokens, moves_kv = request.num_computed_tokens, live.dialect.join.moves_kv
        if moves_kv:
            held = {thread: live.held.pop(thread) for thread in branch.waits_for}
            stitched = self._stitching.stitched(live, held)
            assert stitched.num_tokens == branch.stitched_len
            num_computed_tokens = stitched.num_tokens
            self._placing.start_stitched(request, stitched, ((0, branch.offset),))
        rebase_prompt(request, plan.token_ids, params)
        if branch is live.family.root:
            self._answers.joined(request, live.dialect.join.shown_ids(plan))
        if held_first := self._ahead.prefilled(live, branch):
            kv.transfer_blocks(self._core.kv_cache_manager, request, held_first)
            num_computed_tokens = held_first.num_tokens
        fj_params = self._core.fj_params[request.request_id]
        fj_params.since, fj_params.at_prompt = request.num_tokens, effect.forks
        if not moves_kv:  # the last token is computed once more, where nothing follows it
            request.num_computed_tokens = num_computed_tokens
            num_computed_tokens = kv.keep(self._core.kv_cache_manager, request, request.num_tokens - 1)
        queues.resume(self._core.scheduler, request, num_computed_tokens)
        num_prefilled = num_tokens - num_computed_tokens
        live.emit(Joined(parent_index=branch.index, prefilled_tokens=num_prefilled))

    def swap(self, live: LiveFamily, effect: effects.Swap) -> None:
        """Let a branch that decodes go on after other tokens than it wrote."""
        branch = effect.branch
        request = self._core.request_of(branch)
        queues.park(self._core.scheduler, request)
        self._rewind(request, effect.keep)
        room = live.room(branch, request.num_tokens + len(effect.token_ids))
        rebase_prompt(request, effect.token_ids, self._params.behind_join(live, branch, room))
        if branch is live.family.root:
            self._answers.joined(request, effect.token_ids)
        # the last token is computed once more, where nothing follows it
        computed = min(request.num_computed_tokens, request.num_tokens - 1)
        queues.resume(self._core.scheduler, request, computed)

    def sample_again(self, request: Request) -> None:
        """Draw the sample again that was dropped for a fork after the prompt, if that is where it stands."""
        if request.num_output_tokens == 0:
            queues.park(self._core.scheduler, request)
            # the last token is computed once more, to sample from
            computed = kv.keep(self._core.kv_cache_manager, request, request.num_tokens - 1)
            queues.resume(self._core.scheduler, request, computed)

    def _rewind(self, request: Request, num_tokens: int) -> None:
        """Let a parked ``request`` be as it was behind ``num_tokens`` tokens, to go on otherwise.

        It keeps the blocks that these tokens fill. The others go back: they may be hashed by what is cut off.
        """
        truncate(request, num_tokens, self._core.hashes_before(request, num_tokens))
        connector.forget_tokens(self._core.scheduler, request, num_tokens)
        request.num_computed_tokens = kv.keep_whole_blocks(self._core.kv_cache_manager, request, num_tokens)
