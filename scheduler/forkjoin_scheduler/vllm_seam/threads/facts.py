"""What machines may ask of the engine (``machine/world.py``)."""

from __future__ import annotations

import time

from vllm.v1.request import RequestStatus

from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.families.pruner import Pruner
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.policy.pruning import POLICIES
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import Fence


class Facts:
    """The world of machines, as vLLM has it. Keeps nothing."""

    def __init__(self, core: Core, fence: Fence) -> None:
        self._core, self._fence = core, fence

    @property
    def tokenizer(self) -> Tokenizer:
        return self._core.tokenizer

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._core.eos_ids

    @property
    def max_model_len(self) -> int:
        return self._core.max_model_len

    def now(self) -> float:
        return time.monotonic()

    def context(self, branch: Branch) -> list[int]:
        return self._core.request_of(branch)._all_token_ids

    def num_computed(self, branch: Branch) -> int:
        return self._core.request_of(branch).num_computed_tokens

    def is_running(self, thread: Branch) -> bool:
        return thread.request_id in self._core.requests

    def is_standing(self, branch: Branch) -> bool:
        return self._core.request_of(branch).status == RequestStatus.WAITING_FOR_STREAMING_REQ

    def holds_kv(self, thread: Branch) -> bool:
        return kv.has_blocks(self._core.kv_cache_manager, self._core.request_of(thread))

    def free_kv(self) -> float:
        return self._core.num_free_blocks() / kv.num_blocks(self._core.kv_cache_manager)

    def pruner(self, name: str, vote: Vote) -> Pruner | None:
        try:
            own = self._core.settings.policy("prune_policy") if name == "own" else None
            return Pruner(own or POLICIES[name](), vote)
        except (Exception, SystemExit) as error:  # the policy may be anybody's
            self.blame(name, error)
            return None

    def blame(self, policy: str, error: BaseException) -> None:
        if policy == "own":
            self._fence.blame("prune_policy", "prune", error)
        else:
            self._fence.contain("prune", error, None)
