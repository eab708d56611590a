"""What a vote lets its threads do: start, in waves if the request says so, and end before their time.

They end early because they can change nothing any more, or because a pruning policy stops them.
"""

from __future__ import annotations

from vllm.v1.request import Request

from forkjoin_scheduler.machine.family import Branch
from forkjoin_scheduler.machine.pruner import Pruner
from forkjoin_scheduler.machine.thread_end import ThreadEnd
from forkjoin_scheduler.machine.vote import Vote
from forkjoin_scheduler.policy.pruning import POLICIES
from forkjoin_scheduler.policy.waves import first_wave, is_decided, num_needed
from forkjoin_scheduler.publish.events import ThreadsStarted
from forkjoin_scheduler.vllm_seam.cache import kv
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.fence import Fence
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.threads.ending import Ends
from forkjoin_scheduler.vllm_seam.threads.starting import Starting


class Voting:
    """Starts and cuts the threads of votes. Holds nothing of any family: that is in ``LiveFamily``."""

    def __init__(self, core: Core, fence: Fence, ends: Ends, starting: Starting) -> None:
        self._core, self._fence, self._ends, self._starting = core, fence, ends, starting

    def start(self, live: LiveFamily, threads: list[Branch], parent: Request) -> None:
        """Start ``threads``, which ``parent`` has just forked into: of a vote in waves, the first of them."""
        if live.vote is not None and (name := live.wish.options.prune) is not None:
            live.pruner = self._pruner(name, live.vote)
        num_first = len(threads)
        if (confidence := live.wish.options.confidence) is not None:
            num_first = first_wave(len(threads), confidence)
            live.later = threads[num_first:]
        for thread in threads[:num_first]:
            self._starting.start(live, thread, parent)

    def _pruner(self, name: str, vote: Vote) -> Pruner | None:
        """What the policy of this name decides by; None if it can't be made."""
        try:
            own = self._core.settings.policy("prune_policy") if name == "own" else None
            return Pruner(own or POLICIES[name](), vote)
        except (Exception, SystemExit) as error:  # the policy may be anybody's
            self._contain(name, error)
            return None

    def _contain(self, name: str | None, error: BaseException) -> None:
        if name == "own":
            self._fence.blame("prune_policy", "prune", error)
        else:
            self._fence.contain("prune", error, None)

    def advance(self, live: LiveFamily) -> None:
        """Do what the votes of this step call for: cut the threads of a decided one, start more of others."""
        options = live.wish.options
        if live.vote is None or options.wait_for_all:
            return
        has_news = live.vote.take_news()
        if live.pruner is not None:
            has_news |= self._prune(live, live.pruner)
        if not has_news:
            return
        confidence = 1.0 if options.confidence is None else options.confidence
        for branch in live.parked():
            tally = live.vote.tally(branch.waits_for)
            if is_decided(tally, confidence):
                self._cut(live, branch)
            elif live.later:
                num_running = len(tally.open) - len(live.later)
                self._start_more(live, branch, num_needed(tally, confidence) - num_running)

    def _prune(self, live: LiveFamily, pruner: Pruner) -> bool:
        """Stop the threads that the request's policy does not let go on; returns whether there are any.

        A policy that raises is asked no more: the vote goes on without.
        """
        manager, threads = self._core.kv_cache_manager, live.family.root.waits_for
        free = kv.num_free_blocks(manager) / kv.num_blocks(manager)
        # of a family that has ended, those that never started still stand among the later ones
        num_running = live.family.num_live - live.family.root.is_live - len(live.later)
        if num_running <= 0:
            return False
        running = {t for t in threads if t.is_live and t.request_id in self._core.requests}
        try:
            if not pruner.is_due(live.family.num_generated, num_running, free):
                return False
            stopped = pruner.to_stop(
                threads, running, lambda t: kv.has_blocks(manager, self._core.request_of(t)), free
            )
        except (Exception, SystemExit) as error:  # the policy may be anybody's
            self._contain(live.wish.options.prune, error)
            live.pruner = None
            return False
        for thread in threads:
            if thread.position in stopped:
                self._ends.cancel(live, thread, ThreadEnd.PRUNED)
        return bool(stopped)

    def _cut(self, live: LiveFamily, branch: Branch) -> None:
        """Cut the threads of ``branch``: whatever they voted for, the answer would be the same."""
        live.later = []
        for thread in branch.waits_for:
            if thread.is_live:
                end = ThreadEnd.CUT if thread.num_generated else ThreadEnd.NOT_STARTED
                self._ends.cancel(live, thread, end)

    def _start_more(self, live: LiveFamily, branch: Branch, num: int) -> None:
        if num <= 0:
            return
        starting, live.later = live.later[:num], live.later[num:]
        parent = self._core.request_of(branch)
        # They were waited with for what has ended: that is on their way.
        begun = max(t.num_critical for t in branch.waits_for if not t.is_live)
        for thread in starting:
            thread.num_critical = begun
            self._starting.start(live, thread, parent)
        live.tell(
            ThreadsStarted(
                parent_index=branch.index,
                threads=[t.index for t in starting],
                shared_tokens=min(parent.num_computed_tokens, starting[0].fork_len),
            )
        )
