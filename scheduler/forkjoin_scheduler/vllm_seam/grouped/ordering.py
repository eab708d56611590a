"""Which rows of a step share KV, decided as it is scheduled: they come first, and workers may group them.

A row is a request with one token in the step, or one and drafts: those rows of which vLLM's runner has all
others follow, so that they are alike. It may share the blocks that it had computed before: not those that
another row computes in this very step, though vLLM has them found by then.

A block table only grows while a request runs. So nothing is looked at again but for rows that come, go, or
start (again); in most steps that is none.

Invariants (pinned by tests): a step computes what it did, in another order; groups come first, and the rows
of a group as they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec

from forkjoin_scheduler.policy.shared_prefixes import Group, SharedPrefixes
from forkjoin_scheduler.publish.events import Grouped
from forkjoin_scheduler.settings import AUTO
from forkjoin_scheduler.tensors.two_passes import StepGroups
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_scheduler.vllm_seam.grouped.handing import Report, attach_groups, report_of

#: KV, in bytes of a layer and rank, that a step has to save before two passes are expected to be faster than
#: one. Estimated, on no GPU: docs/grouped-attention.md.
MIN_SAVED_BYTES = 50_000_000
#: The same where graphs of whole steps have groups: a step costs no more launches then.
MIN_SAVED_BYTES_WHOLE = 17_000_000
#: Steps whose counts front ends hear of together.
STEPS_TOLD_AT_ONCE = 32


class Grouping:
    """Owns the tree of the rows of the last step, and what workers said that they grouped."""

    def __init__(self, core: Core) -> None:
        self._core = core
        setting = core.settings.grouped_attention
        #: Tokens that a step must save; None: as many as a worker's report makes of the bytes.
        self._min_saved = int(setting) if setting.isdigit() else None
        self._tree = SharedPrefixes()
        self._scheduled: dict[str, int] = {}
        self._drafted: set[str] = set()
        self._num_queries = 1
        self._groups: list[Group] = []
        #: In whose blocks groups are looked for; None: in none's, for no worker has said that it can group.
        self._kv_cache_group: int | None = None
        self._is_auto = setting == AUTO
        self._only_orders = setting == "order"
        if self._only_orders:
            self._kv_cache_group = _first_of_full_attention(core.scheduler.kv_cache_config)
        self._num_steps = self._rows = self._saved_tokens = 0

    @classmethod
    def of(cls, core: Core) -> Grouping | None:
        """None where it has nothing to do: switched off, or on vLLM's first runner with its own order."""
        config = core.scheduler.vllm_config
        is_off = core.settings.dialect is None or core.settings.grouped_attention == "off"
        return None if is_off or not config.use_v2_model_runner or config.speculative_config else cls(core)

    def step_scheduled(self, output: SchedulerOutput) -> None:
        """Put the rows of groups first in ``output``, and let workers group them if that is worth it."""
        if self._kv_cache_group is None:
            return
        scheduled, drafted = output.num_scheduled_tokens, output.scheduled_spec_decode_tokens.keys()
        started = {new.req_id for new in output.scheduled_new_reqs}
        started |= output.scheduled_cached_reqs.resumed_req_ids
        if started or scheduled != self._scheduled or drafted != self._drafted:
            self._num_queries, rows = self._alike(output)
            self._follow(rows, started)
            self._scheduled, self._drafted = dict(scheduled), set(drafted)
            self._groups = _in_order(self._tree.groups(), scheduled)
        if not self._groups:
            return
        first = {row: scheduled[row] for group in self._groups for row in group.rows}
        output.num_scheduled_tokens = first | scheduled
        if not self._only_orders:
            self._attach(output)

    def _alike(self, output: SchedulerOutput) -> tuple[int, set[str]]:
        """The rows that vLLM's runner puts first, and how many new tokens each has.

        It sorts: rows with all drafts that there can be, then with fewer, the fewest first, then without.
        """
        scheduled, drafts = output.num_scheduled_tokens, output.scheduled_spec_decode_tokens
        most = self._core.scheduler.num_spec_tokens
        num = min((len(d) for d in drafts.values() if d), key=lambda n: (n != most, n), default=0)
        known = self._core.requests  # of a family that has just failed nothing is
        rows = {i for i, n in scheduled.items() if n == 1 + num == 1 + len(drafts.get(i, ())) and i in known}
        return 1 + num, rows

    def _follow(self, rows: set[str], started: set[str]) -> None:
        """Let the tree be of ``rows``; those that ``started`` may have other blocks than before."""
        assert self._kv_cache_group is not None
        manager, group = self._core.kv_cache_manager, self._kv_cache_group
        size, requests = kv.tokens_of_block(manager, group), self._core.requests
        there = self._tree.rows()
        for row in there - (rows - started):
            self._tree.drop(row)
        for row in rows - (there - started):
            num_before = requests[row].num_computed_tokens - self._num_queries  # without this step's tokens
            self._tree.add(row, kv.first_blocks(manager, group, row, num_before // size))

    def _attach(self, output: SchedulerOutput) -> None:
        assert self._kv_cache_group is not None
        size = kv.tokens_of_block(self._core.kv_cache_manager, self._kv_cache_group)
        sizes = tuple(len(group.rows) for group in self._groups)
        tokens = tuple(group.num_blocks * size for group in self._groups)
        groups = StepGroups(self._kv_cache_group, sizes, tokens, self._num_queries)
        if groups.saved_tokens >= (self._min_saved or 0):
            attach_groups(output, groups)

    def step_ended(self, model_runner_output: Any) -> None:
        """Take what a worker did. The first to say that it can group starts it."""
        report = report_of(model_runner_output)
        if report is None:
            return
        if self._kv_cache_group is None:
            self._start(report)
        if report.rows:
            self._num_steps += 1
            self._rows += report.rows
            self._saved_tokens += report.saved_tokens

    def _start(self, report: Report) -> None:
        self._kv_cache_group = report.kv_cache_group
        if self._is_auto:
            least = MIN_SAVED_BYTES_WHOLE if report.is_whole else MIN_SAVED_BYTES
            self._min_saved = -(-least // report.token_bytes)

    def emit(self, result: dict[int, EngineCoreOutputs]) -> None:
        """Let a front end count what was grouped: every few steps, and when nothing is left to run."""
        if not self._num_steps or (self._num_steps < STEPS_TOLD_AT_ONCE and self._core.scheduler.running):
            return
        event = Grouped(rows=self._rows, saved_tokens=self._saved_tokens)
        self._num_steps = self._rows = self._saved_tokens = 0
        packed = wire.pack("", [event], self._core.engine)
        result.setdefault(0, EngineCoreOutputs()).outputs.append(packed)


def _in_order(groups: list[Group], scheduled: Iterable[str]) -> list[Group]:
    """Groups and their rows as vLLM has them: samples are booked in this order, and limits are met in it."""
    place = {row: at for at, row in enumerate(scheduled)}
    alike = [Group(tuple(sorted(g.rows, key=place.__getitem__)), g.num_blocks) for g in groups]
    return sorted(alike, key=lambda group: place[group.rows[0]])


def _first_of_full_attention(kv_cache_config: Any) -> int | None:
    groups = enumerate(kv_cache_config.kv_cache_groups)
    return next((i for i, group in groups if type(group.kv_cache_spec) is FullAttentionSpec), None)
