"""Drafts from a thread's family, where vLLM's own drafter has none (``--draft-from family``).

Without async scheduling, drafts pass by the scheduler on their way from the workers back to them. So what it
knows of a family's texts can be put in there, and no worker has to know of families.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vllm.config import SpeculativeConfig
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.request import Request

from forkjoin_scheduler.dialects.dialect import Context
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.lookup import Lookup
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.mends.drafting import check_fills_in

#: Equal tokens in front of a draft, where the drafter does not say how many it wants.
MIN_N, MAX_N = 3, 5
DRAFTER, FAMILY = "drafter", "family"


class FamilyDrafts:
    """Fills in drafts, and counts whose were right. What it knows of a family is in ``LiveFamily``."""

    def __init__(self, speculative_config: SpeculativeConfig, core: Core, *, is_on: bool) -> None:
        self._core, self._is_on = core, is_on
        self._max_drafts = speculative_config.num_speculative_tokens
        self._min_n = speculative_config.prompt_lookup_min or MIN_N
        self._max_n = speculative_config.prompt_lookup_max or MAX_N
        #: Requests whose drafts for the next step are their family's.
        self._of_family: set[str] = set()

    @classmethod
    def of(cls, core: Core) -> FamilyDrafts | None:
        """Those of an engine; None where it drafts nothing."""
        is_on = core.settings.draft_from == "family"
        if is_on:
            check_fills_in(core.scheduler.vllm_config)
        speculative = core.scheduler.vllm_config.speculative_config
        return None if speculative is None else cls(speculative, core, is_on=is_on)

    def fill_in(self, drafts: DraftTokenIds, requests: Mapping[str, Request]) -> None:
        """Give drafts to those who have none, in ``drafts`` itself."""
        if not self._is_on:
            return
        self._of_family.intersection_update(requests)
        self._of_family.difference_update(drafts.req_ids)
        for place, request_id in enumerate(drafts.req_ids):
            whose, request = self._core.whose(request_id), requests.get(request_id)
            if whose is None or request is None or request.is_prefill_chunk:
                continue
            lookup = self._followed(*whose, request)
            if not drafts.draft_token_ids[place]:
                found = lookup.find(request._all_token_ids, self._max_drafts)
                drafts.draft_token_ids[place] = found
                if found:
                    self._of_family.add(request_id)

    def _followed(self, live: LiveFamily, branch: Branch, request: Request) -> Lookup:
        """The texts of a family, with what ``branch`` has written, but for what drafters see anyway."""
        if live.lookup is None:
            live.lookup = Lookup(self._min_n, self._max_n)
        is_seen = live.dialect.thread.context is Context.PARENT and live.dialect.join.waits
        if branch is not live.family.root or not is_seen:
            live.lookup.follow(branch.path, request._all_token_ids, branch.fork_len)
        return live.lookup

    def count(self, drafted: Mapping[str, list[int]], sampled: Iterable[tuple[str, list[int]]]) -> None:
        """Count the ``drafted`` tokens of a step and, of what it brought, those that were right."""
        for request_id, token_ids in sampled:
            if token_ids and request_id in drafted and (whose := self._core.whose(request_id)):
                source = FAMILY if request_id in self._of_family else DRAFTER
                whose[0].drafted[source] += len(drafted[request_id])
                whose[0].accepted[source] += len(token_ids) - 1
