"""Forks that a request asks for by itself, after its prompt, of any model: branches, best of N."""

from __future__ import annotations

from itertools import cycle

from forkjoin_scheduler.dialects.dialect import Dialect, ForkAt, Thread
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.dialects.policies import Policies, Policy
from forkjoin_scheduler.families.fork import ForkPlan, ThreadPlan
from forkjoin_scheduler.joins.finish import Finish
from forkjoin_scheduler.joins.join import Join
from forkjoin_scheduler.joins.kinds import make_join
from forkjoin_scheduler.joins.reprefill import Reprefill
from forkjoin_scheduler.request.options import CompiledBranch, CompiledOptions

#: A branch that runs out of tokens is left as it is; the others are worth having.
POLICIES = Policies(thread_eos=Policy.CLOSE_THREAD, thread_length=Policy.CLOSE_THREAD)


def explicit_dialect(options: CompiledOptions, limits: Limits) -> Dialect:
    """How a request forks that names its branches, or wants the best of N."""
    join: Join
    if options.best_of is not None:
        name, width, join = "best_of", options.best_of, make_join(kind="vote", result=options.vote)
    else:
        assert options.branches is not None
        name, width = "branches", len(options.branches)
        join = Reprefill() if options.closing is not None else Finish()
    return Dialect(
        name=name,
        source="the request",
        fork_at=ForkAt.PROMPT,
        width=width,
        thread=Thread(header=""),
        join=join,
        limits=limits,
        policies=POLICIES,
    )


def explicit_plan(options: CompiledOptions) -> ForkPlan:
    """The threads that the request asks for."""
    branches = options.branches or [CompiledBranch("", [])]
    threads = []
    for number, branch in zip(range(1, (options.width or 0) + 1), cycle(branches), strict=False):
        header = tuple(branch.token_ids)
        threads.append(ThreadPlan(str(number), branch.title, header, header))
    return ForkPlan(tuple(threads), 0)
