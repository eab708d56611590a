"""What every part of fork/join knows in an engine core: settings, families, and whose request is whose.

The parts are made and held by ``ForkJoinScheduler``, each of those before it there. What a part owns, as its
docstring says, is kept nowhere else.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.families.family import Branch, Family
from forkjoin_scheduler.machine.world import World
from forkjoin_scheduler.policy.leases import Leases
from forkjoin_scheduler.publish.recording import Recording
from forkjoin_scheduler.publish.weights import Weights
from forkjoin_scheduler.settings import Settings
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.live import LiveFamily, max_tokens_of, terms_of
from forkjoin_scheduler.vllm_seam.starts.forkjoin_params import ForkJoinParams
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer, end_of_sequence_ids
from forkjoin_scheduler.vllm_seam.versions import num_hashed_blocks
from forkjoin_scheduler.vllm_seam.view import SchedulerView

#: Beneath vLLM's, whose handler, level and format it so has in every process.
logger = init_logger("vllm.forkjoin.engine")

STOPPED, CAPPED = RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED


class Core:
    """Owns the families that run, and which request is of which thread.

    ``scheduler`` is vLLM's, with the parts in it. ``tokenizer`` and ``eos_ids`` are there where a dialect is
    ``bound_dialect``.
    """

    tokenizer: EngineTokenizer
    eos_ids: frozenset[int]
    #: What the machines of families ask: set by the scheduler.
    world: World

    def __init__(self, scheduler: SchedulerView, settings: Settings) -> None:
        self.scheduler, self.settings = scheduler, settings
        #: The number of this engine, from 0.
        self.engine: int = scheduler.vllm_config.parallel_config.data_parallel_index
        self.num_slots: int = scheduler.max_num_active_reqs
        self.kv_cache_manager = scheduler.kv_cache_manager
        #: Families that have forked, by the id of their request.
        self.live: dict[str, LiveFamily] = {}
        #: The requests of threads that decode, by id.
        self.threads: dict[str, tuple[LiveFamily, Branch]] = {}
        #: What requests that fork/join has to do with ask for, by id; of threads, too.
        self.fj_params: dict[str, ForkJoinParams] = {}
        #: The trees of requests that want them, by id: as long as ``fj_params`` or a family holds them.
        self.recordings: WeakValueDictionary[str, Recording] = WeakValueDictionary()
        #: Which weights the workers have.
        self.weights = Weights()
        #: Requests with a fork planned in this step beside which they go on: they may have ended since.
        self.forking: dict[str, Request] = {}
        #: Answers that are kept for requests to come.
        self.leases = Leases(int(settings.max_kept_share * kv.num_blocks(self.kv_cache_manager)))
        self.bound_dialect: BoundDialect | None = None
        if settings.dialect is not None:
            model_config = scheduler.vllm_config.model_config
            self.tokenizer = EngineTokenizer.from_model_config(model_config)
            self.eos_ids = frozenset(end_of_sequence_ids(model_config))
            self.bound_dialect = BoundDialect.bind(settings.dialect, self.tokenizer)

    @property
    def requests(self) -> dict[str, Request]:
        """All that vLLM knows, by id."""
        return self.scheduler.requests

    @property
    def max_model_len(self) -> int:
        """Tokens, and positions, that a context may have."""
        return self.scheduler.max_model_len

    def num_free_blocks(self) -> int:
        """Blocks that a request can have: nobody holds them, or leases alone, which give way."""
        num_kept = kv.num_held_by_none_else(self.kv_cache_manager, self.leases.holders)
        return kv.num_free_blocks(self.kv_cache_manager) + num_kept

    def forget(self, request_id: str) -> None:
        """Keep nothing of a request that vLLM has forgotten."""
        self.fj_params.pop(request_id, None)

    def hashes_before(self, request: Request, num_tokens: int) -> list[BlockHash]:
        """Those of the blocks that the first ``num_tokens`` tokens of ``request`` decide."""
        return request.block_hashes[: num_hashed_blocks(self.scheduler, num_tokens)]

    def turn(self, request: Request) -> tuple[int, float]:
        """Whose turn it is to run: the more urgent first, where the policy is by priority, then the older."""
        by_priority = self.scheduler.policy == SchedulingPolicy.PRIORITY
        return request.priority if by_priority else 0, request.arrival_time

    def whose(self, request_id: str) -> tuple[LiveFamily, Branch] | None:
        """The family and branch of a request; None if it has not forked."""
        live = self.live.get(request_id)
        return self.threads.get(request_id) if live is None else (live, live.family.root)

    def branch_of(self, request: Request) -> tuple[LiveFamily, Branch]:
        """The family and branch of a request, the family new if the request has not forked yet."""
        if entry := self.threads.get(request.request_id):
            return entry
        live = self.live.get(request.request_id)
        if live is None:
            fj_params = self.fj_params[request.request_id]
            family = Family(
                request.request_id,
                fj_params.limits,
                max_tokens=max_tokens_of(fj_params),
                include_threads=fj_params.options.include_threads,
            )
            family.generated(family.root, list(request.output_token_ids))
            family.num_shown = family.num_generated
            terms = terms_of(request, fj_params)
            live = LiveFamily(family, terms, self.world, request=request, fj_params=fj_params)
            live.recording = fj_params.recording
            self.live[request.request_id] = live
        return live, live.family.root

    def request_of(self, branch: Branch | None) -> Request:
        """The request of a branch that has not ended, or ended in this step after a fork."""
        assert branch is not None
        request = self.requests.get(branch.request_id)
        return self.forking[branch.request_id] if request is None else request
