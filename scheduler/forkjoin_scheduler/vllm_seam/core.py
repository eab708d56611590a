"""What every part of the scheduler knows: the settings, the families, and whose request is whose.

``ForkJoinScheduler`` is made of layers, each on the one before: ``core`` (this), ``fence`` (errors
end one family), ``jobs`` (KV that is computed beside the decoding), ``stitching``, ``ahead`` (the
progressive join), ``ending``, ``cutting`` (ends before their time), ``joining``, ``forking``,
``hearing`` (what branches write), and ``scheduler``, which vLLM calls. What needs no layer, but a view of
them, is held by it and keeps its own state: see ``view.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.bound import BoundDialect
from forkjoin_scheduler.dialect import ForkAt
from forkjoin_scheduler.errors import BadRequestOptions, EnginePlace, UnsupportedEngine
from forkjoin_scheduler.excerpt import cut
from forkjoin_scheduler.explicit import explicit_dialect
from forkjoin_scheduler.family import Branch, Family
from forkjoin_scheduler.options import CompiledOptions
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_scheduler.vllm_seam import compat, kv, queues
from forkjoin_scheduler.vllm_seam.answers import Answers, constrains_threads, place_of_answer
from forkjoin_scheduler.vllm_seam.live import LiveFamily, max_tokens_of
from forkjoin_scheduler.vllm_seam.sampling import can_ban
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer, end_of_sequence_ids
from forkjoin_scheduler.vllm_seam.wish import Wish, noted

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.jobs import Job

#: Beneath vLLM's, whose handler, level and format it so has in every process.
logger = init_logger("vllm.forkjoin.engine")

_MAX_WARNING_CHARS = 300

STOPPED, CAPPED = RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED
_ONCE_RAN = (RequestStatus.PREEMPTED, RequestStatus.WAITING_FOR_STREAMING_REQ)


class Core(AsyncScheduler):
    """The state that the layers share."""

    max_num_active_reqs: int
    _pause_state: PauseState
    prefill_capacity_bound: bool
    num_spec_tokens: int
    num_lookahead_tokens: int
    _spec_decode_step_blocks: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Attributes that are vLLM's: all others are ours.
        self._names_of_vllm = frozenset(vars(self))
        config = self.vllm_config.additional_config
        if not isinstance(config, dict) or KEY not in config:
            raise UnsupportedEngine(
                f"the fork/join scheduler expects its settings in additional_config[{KEY!r}], found none: "
                "serve with `forkjoin serve`, which gives them, or without --scheduler-cls"
            )
        self._settings = Settings.model_validate(config[KEY])
        #: The number of this engine, from 0.
        self._engine: int = self.vllm_config.parallel_config.data_parallel_index
        #: Families that have forked, by the id of their request.
        self._live: dict[str, LiveFamily] = {}
        #: The requests of threads that decode, by id.
        self._threads: dict[str, tuple[LiveFamily, Branch]] = {}
        #: Jobs, by the id of the request that computes for them.
        self._fills: dict[str, Job] = {}
        self._num_slots: int = self.max_num_active_reqs
        self._spoken: BoundDialect | None = None
        if self._settings.dialect is None:
            return
        self.kv_holding_waiting = queues.BegunQueue(self.policy)
        compat.check_version()
        compat.check_config(self.vllm_config)
        compat.check_cache(self.kv_cache_config)
        compat.check_model(self._settings.dialect, self.vllm_config.model_config)
        self._tokenizer = EngineTokenizer.from_model_config(self.vllm_config.model_config)
        self._eos_ids = end_of_sequence_ids(self.vllm_config.model_config)
        self._spoken = BoundDialect.bind(self._settings.dialect, self._tokenizer)
        self._answers = Answers(self.structured_output_manager, self._tokenizer)
        if self._settings.dialect.is_stitched:
            compat.check_stitching(self.vllm_config, kv.num_blocks(self.kv_cache_manager))
            kv.guard_hashing(self.kv_cache_manager, self._contain)

    if TYPE_CHECKING:

        def _contain(self, where: EnginePlace, error: Exception, of: object) -> None:
            """Of the layer above: the family of ``of`` failed."""

    # ---- what has begun, and waits ---------------------------------------------------------

    def _turn(self, request: Request) -> tuple[int, float]:
        """Whose turn it is to run: the more urgent first, where the policy is by priority, then the older."""
        by_priority = self.policy == SchedulingPolicy.PRIORITY
        return request.priority if by_priority else 0, request.arrival_time

    def _holds_kv_blocks(self, request: Request) -> bool:  # type: ignore[override]  # vLLM calls it on itself
        """Whether ``request`` has begun: it has run before, or is of a family that has.

        vLLM asks so for what holds blocks, and lets that wait before all that does not. One that has
        lost its blocks has begun all the same: behind requests that wait for room it might stand for
        ever, for the room that they wait for is its own.
        """
        if self._spoken is None or super()._holds_kv_blocks(request):
            return super()._holds_kv_blocks(request)
        request_id = request.request_id
        return (
            request.status in _ONCE_RAN
            or request_id in self._threads
            or request_id in self._live
            or request_id in self._fills
        )

    def get_num_unfinished_requests(self) -> int:
        """A family that is not done is work, though all of it be parked or suspended.

        vLLM takes what is parked for sessions that wait for their clients, and leaves it out.
        """
        num = super().get_num_unfinished_requests()
        return num if self._pause_state == PauseState.PAUSED_ALL else max(num, len(self._live))

    # ---- requests --------------------------------------------------------------------------

    def _wish_of(self, request: Request, options: CompiledOptions) -> Wish | None:
        """What ``request`` asks of fork/join; None if it has nothing to do with it (see the README)."""
        assert self._spoken is not None
        params = request.sampling_params
        assert params is not None
        if (
            not options.enabled
            or request.prompt_embeds is not None
            or request.mm_features
            # vLLM counts it in each request by itself: in each thread, were there any
            or params.thinking_token_budget not in (None, -1)
        ):
            return None
        limits = options.limits(self._settings.limits)
        spoken, at_prompt = self._spoken, self._spoken.dialect.fork_at is ForkAt.PROMPT
        if options.forks_at_prompt:
            spoken, at_prompt = BoundDialect(explicit_dialect(options, limits), self._tokenizer, None), True
        if at_prompt and params.prompt_logprobs is not None:
            _warn(request, "prompt_logprobs with a fork behind the prompt: decoding sequentially")
            return None
        not_in_threads = self._kept_for_answer(request, spoken)
        if not_in_threads is None:
            return None
        return Wish(options, limits, spoken, params, request.num_prompt_tokens, at_prompt, not_in_threads)

    def _kept_for_answer(self, request: Request, spoken: BoundDialect) -> list[list[int]] | None:
        """The rows of tokens that no thread of ``request`` may write: they would begin its answer.

        None: it can't fork, for its grammar holds for what would.
        """
        if not request.use_structured_output or constrains_threads(spoken.dialect.join.kind):
            return []
        if not spoken.dialect.join.goes_on or not self._answers.comes_later(request, spoken.dialect):
            return None
        rows, params = self._answers.openings(request), request.sampling_params
        return rows if rows is not None and params is not None and can_ban(params, rows) else None

    def _await_answer(self, request: Request, options: CompiledOptions) -> None:
        """Hold back the grammar of a structured ``request`` whose dialect says where its answer begins."""
        if options.structured is None or not request.use_structured_output:
            return
        assert self._spoken is not None
        if answer := place_of_answer(self._spoken, options):
            self._answers.await_answer(
                request, self._spoken, answer, joins=options.enabled and options.best_of is None
            )

    def _options(self, request: Request) -> CompiledOptions:
        assert request.sampling_params is not None
        try:
            options = CompiledOptions.model_validate((request.sampling_params.extra_args or {}).get(KEY, {}))
            options.check_limits(self._settings.limits, self._settings.caps)
            options.check_pruning(self._settings.prune_policy)
        except (BadRequestOptions, ValidationError) as error:
            # The front end answers these with a 400; what comes around it must not end the engine.
            _warn(request, f"{cut(str(error), _MAX_WARNING_CHARS)}; decoding sequentially")
            return CompiledOptions(enabled=False)
        return options

    def _branch_of(self, request: Request) -> tuple[LiveFamily, Branch]:
        """The family and branch of a request, the family new if the request has not forked yet."""
        if entry := self._threads.get(request.request_id):
            return entry
        live = self._live.get(request.request_id)
        if live is None:
            wish = noted(request)
            assert wish is not None
            family = Family(
                request.request_id,
                wish.limits,
                max_tokens=max_tokens_of(request, wish),
                include_threads=wish.options.include_threads,
            )
            family.generated(family.root, list(request.output_token_ids))
            family.num_shown = family.num_generated
            live = LiveFamily(family, request, wish)
            self._live[request.request_id] = live
        return live, live.family.root

    def _request_of(self, branch: Branch | None) -> Request:
        assert branch is not None
        return self.requests[branch.request_id]


def _warn(request: Request, message: str) -> None:
    extra = {"forkjoin": {"request_id": request.request_id}}
    logger.warning("%s: %s", request.request_id, message, extra=extra)
