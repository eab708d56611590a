"""Branches are given what they had written in an earlier answer: it is prefilled, and not decoded again.

A branch begins, or goes on after a join. What it had written there is appended to its request, and prefilled
with the rest. The sample after that is dropped, for the branch had forked there, or its next token is to
follow in a step of its own. A branch that had ended ends before it has run: its join computes it.
"""

from __future__ import annotations

from vllm.v1.request import Request, RequestStatus

from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.machine import writing
from forkjoin_scheduler.request.given import BEGIN, OPEN, Stretch
from forkjoin_scheduler.vllm_seam.core import Core
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.starts import queues
from forkjoin_scheduler.vllm_seam.starts.requests import rebase_prompt
from forkjoin_scheduler.vllm_seam.threads.params import Params
from forkjoin_scheduler.vllm_seam.threads.performing import Performing


class Giving:
    """Gives branches what they had written. Keeps nothing."""

    def __init__(self, core: Core, params: Params, performing: Performing) -> None:
        self._core = core
        self._params = params
        self._performing = performing

    def give(self, live: LiveFamily) -> None:
        """Give those branches of a family what they had written that have begun, or gone on."""
        while live.to_give:
            branch = live.to_give.pop(0)
            if branch.state is not BranchState.DECODING or (stretch := live.take_given(branch)) is None:
                continue
            request = self._core.request_of(branch)
            self._performing.perform(live, writing.give(live, branch, stretch))
            if stretch.end is None and stretch.parts:
                self._append(live, branch, request, stretch)

    def has_arrived(self, live: LiveFamily, branch: Branch, request: Request) -> bool:
        """The sample of ``request`` was dropped: the KV of what it was given is there.

        Returns whether that is all; else it forks now, or what it calls for is heard.
        """
        fj_params = self._core.fj_params[request.request_id]
        given, fj_params.given = fj_params.given, None
        if given is BEGIN:
            return self._begin(live, branch)
        if given is not None and given.then == OPEN and not writing.calls(live, branch, fj_params.since):
            self._performing.perform(live, writing.go_on(live, branch))
            return True
        return False

    def _begin(self, live: LiveFamily, branch: Branch) -> bool:
        """A request has read its prompt. One that had forked there does now."""
        if live.given[branch.path][0].parts:
            live.to_give.append(branch)
            return True
        stretch = live.take_given(branch)
        assert stretch is not None
        if stretch.then == OPEN:
            self._performing.perform(live, writing.go_on(live, branch))
        return stretch.then == OPEN

    def _append(self, live: LiveFamily, branch: Branch, request: Request, stretch: Stretch) -> None:
        """Let ``request`` go on after ``stretch``."""
        token_ids, since = stretch.token_ids, writing.since(live, branch, stretch)
        runs = request.status == RequestStatus.RUNNING
        if runs:
            queues.park(self._core.scheduler, request)
        num_computed_tokens = request.num_computed_tokens
        room = live.room(branch, request.num_tokens + len(token_ids), branch.offset)
        rebase_prompt(request, token_ids, self._params.of_given(live, branch, room))
        if runs:
            queues.resume(self._core.scheduler, request, num_computed_tokens)
        fj_params = self._core.fj_params[request.request_id]
        fj_params.since, fj_params.at_prompt, fj_params.given = since, True, stretch
