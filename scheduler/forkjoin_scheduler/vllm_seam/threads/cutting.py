"""What ends a family before its time: a budget that is spent, a context that is full, a refused fork.

The rule of what is shown then: each open thread gets the end tag of its dialect and each open block its
own, so the answer can be read as any other, and it ends with ``length``. Which threads were cut, their
ends say.
"""

from __future__ import annotations

from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.joins.joined import close_block_ids
from forkjoin_scheduler.machine.family import Branch, BranchState
from forkjoin_scheduler.machine.thread_end import ThreadEnd
from forkjoin_scheduler.machine.vote import Vote
from forkjoin_scheduler.publish.events import Limited, Voted
from forkjoin_scheduler.vllm_seam.core import CAPPED, Core
from forkjoin_scheduler.vllm_seam.front_end.outputs import injected
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.threads.ending import Ends


class Cutting:
    """Ends families at a limit, what they wrote so far closed. Keeps nothing."""

    def __init__(self, core: Core, ends: Ends) -> None:
        self._core = core
        self._ends = ends

    def end_at_limit(self, live: LiveFamily, reason: str, policy: Policy) -> None:
        """End the request at the limit that ``reason`` names."""
        live.tell(Limited(reason=reason, policy=policy))
        self.end_closed(live)

    def end_at_budget(self, live: LiveFamily) -> None:
        """End the request with the last token that its family may write."""
        self.end_at_limit(live, "total_tokens", live.dialect.policies.total_tokens)

    def end_closed(self, live: LiveFamily, refused: Branch | None = None) -> None:
        """End the request, all that is open closed; also the block in which ``refused`` may not fork."""
        if live.vote is not None:
            self._show_first_vote(live, live.vote)
        else:
            self._close_what_is_open(live, refused)
        self._ends.end_family(live, CAPPED)

    def _close_what_is_open(self, live: LiveFamily, refused: Branch | None) -> None:
        thread, shows_threads = live.dialect.thread, live.dialect.join.shows_threads
        of_block = injected(close_block_ids(live.dialect, self._core.tokenizer))
        of_thread = injected(self._core.tokenizer.encode(thread.close + thread.tail))
        for branch, transcript in live.transcripts.items():
            if not branch.is_live:
                continue
            waits = branch.state in (BranchState.PARKED, BranchState.JOINABLE)
            if branch is refused or (waits and shows_threads):
                transcript.push(of_block)
            if branch.plan is not None:
                transcript.push(of_thread)

    def _show_first_vote(self, live: LiveFamily, vote: Vote) -> None:
        """Of a vote that is cut, answer what most have whose threads have ended, or what the first wrote."""
        threads = live.family.threads
        complete = [t for t in threads if t.end in (ThreadEnd.STOP, ThreadEnd.EOS)]
        voters = complete or [t for t in threads if t.num_generated][:1]
        if not voters:
            return
        winner, result = vote.winner(voters)
        live.transcripts[live.family.root].push(live.transcripts[winner].release())
        live.tell(Voted(index=winner.index, result=result if complete else None))
