"""A family played without an engine: a world of plain lists, which performs what its machine wants done.

Whatever is performed is checked first: that its branch is in a state in which it makes sense. After each step
all is checked that must hold between two of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.pruner import Pruner
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.machine import effects as do
from forkjoin_scheduler.machine import ending
from forkjoin_scheduler.machine.effects import Effect, Effects, How
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.policy.pruning import Pruning
from forkjoin_scheduler.publish.events import ROOT, Forked, ThreadEnded
from forkjoin_scheduler.publish.recording import CONTEXTS
from forkjoin_server.trees import TreeBuilder

EOS = 0
_HOW = {How.STOPPED: "stop", How.CAPPED: "length"}


class Stage:
    """The world of one machine (``world.py``), and who performs its effects. The machine is set behind it."""

    machine: Machine

    def __init__(self, tokenizer, max_model_len: int, *, is_late: bool = False) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.eos_ids = frozenset({EOS})
        #: Whether the KV that closes a thread is there at the end of a later step only.
        self.is_late = is_late
        #: The contexts of branches that have not ended.
        self.contexts: dict[Branch, list[int]] = {}
        #: Those of branches that forked in this step and ended in the same.
        self.forking: dict[Branch, list[int]] = {}
        #: Tokens that each may still write.
        self.left: dict[Branch, int] = {}
        #: How many tokens of its context were there before it wrote, or when it forked last.
        self.since: dict[Branch, int] = {}
        self.standing: set[Branch] = set()
        #: Branches that write nothing, but go on to the next stage of their threads.
        self.to_fork: set[Branch] = set()
        #: Threads that have ended and of which something is held.
        self.held: set[Branch] = set()
        #: Those whose last KV is still computed.
        self.closing: list[Branch] = []
        self.started: set[Branch] = set()
        #: What was performed, in words.
        self.log: list[str] = []
        self.blamed: list[str] = []
        #: What the root's joins put into its context.
        self.joined: list[str] = []
        self.prune_policy: Pruning | None = None
        #: What the machine's recording tells.
        self.tree = TreeBuilder()

    # ---- what the machine may ask --------------------------------------------------------------

    def now(self) -> float:
        return float(len(self.log))

    def context(self, branch: Branch) -> list[int]:
        return self.forking[branch] if branch not in self.contexts else self.contexts[branch]

    def num_computed(self, branch: Branch) -> int:
        return len(self.context(branch))

    def is_running(self, thread: Branch) -> bool:
        return thread in self.contexts

    def is_standing(self, branch: Branch) -> bool:
        return branch in self.standing

    def holds_kv(self, thread: Branch) -> bool:
        return thread in self.contexts

    def free_kv(self) -> float:
        return 0.5

    def pruner(self, name: str, vote: Vote) -> Pruner | None:
        return None if self.prune_policy is None else Pruner(self.prune_policy, vote)

    def blame(self, policy: str, error: BaseException) -> None:
        self.blamed.append(f"{policy}: {error}")

    # ---- what it wants done --------------------------------------------------------------------

    def perform(self, effects: Effects | None) -> None:
        """Perform ``effects``, each before the machine says the next."""
        for effect in effects or ():
            self.log.append(self._said(effect))
            getattr(self, f"_{type(effect).__name__.lower()}")(effect)
            if isinstance(effect, CONTEXTS) and self.machine.recording is not None:
                self.machine.recording.note(self.machine, effect, None)

    def end_request(self, branch: Branch) -> None:
        """The request of ``branch`` is over; what its join may need of it is held."""
        del self.contexts[branch]
        self.standing.discard(branch)
        dialect = self.machine.dialect
        if branch.plan is not None and branch.is_live and dialect.join.keeps_blocks_of(dialect, branch):
            self.held.add(branch)

    def close(self, thread: Branch) -> None:
        """The last KV of ``thread`` is there."""
        self.closing.remove(thread)
        self.perform(ending.closed(self.machine, thread))

    def _goes_on(self, branch: Branch) -> None:
        self.left[branch] = self.machine.budget(
            branch, self.machine.room(branch, len(self.contexts[branch]), branch.offset)
        )
        assert self.left[branch] > 0, "no engine takes a request for no token"

    def _park(self, effect: do.Park) -> None:
        assert self.context(effect.branch) is self.contexts[effect.branch]
        assert effect.branch.state is BranchState.DECODING
        assert effect.branch not in self.standing
        self.standing.add(effect.branch)

    def _start(self, effect: do.Start) -> None:
        thread, parent = effect.thread, effect.thread.parent
        assert thread not in self.started
        assert thread.state is BranchState.DECODING
        assert (parent in self.standing) == self.machine.dialect.join.waits
        assert thread.fork_len <= len(self.context(parent))
        self.contexts[thread] = [*self.context(parent)[: thread.fork_len], *thread.plan.header_ids]
        self.since[thread] = len(self.contexts[thread])
        self.started.add(thread)
        self._goes_on(thread)

    def _sharetail(self, effect: do.ShareTail) -> None:
        assert effect.branch.state is BranchState.PARKED
        assert any(t in self.contexts for t in effect.branch.waits_for)

    def _sampleagain(self, effect: do.SampleAgain) -> None:
        self._decodes(effect.branch)

    def _willnotjoin(self, effect: do.WillNotJoin) -> None:
        self._decodes(effect.branch)
        assert effect.branch.forks == []

    def _swap(self, effect: do.Swap) -> None:
        self._decodes(effect.branch)
        context = self.contexts[effect.branch]
        assert effect.keep <= len(context)
        context[effect.keep :] = effect.token_ids
        self._goes_on(effect.branch)

    def _stop(self, effect: do.Stop) -> None:
        self._decodes(effect.thread)
        assert effect.thread.parent is not None
        self.end_request(effect.thread)

    def _keep(self, effect: do.Keep) -> None:
        thread, dialect = effect.thread, self.machine.dialect
        assert thread.end is not None
        assert thread.is_live
        assert thread not in self.contexts, "it was stopped, or stopped by itself"
        assert thread not in self.closing
        assert (thread in self.held) == dialect.join.keeps_blocks_of(dialect, thread)
        self.closing.append(thread)
        assert dialect.join.moves_kv or not effect.may_lack_kv
        if not (self.is_late and effect.may_lack_kv):
            self.close(thread)

    def _forget(self, effect: do.Forget) -> None:
        for thread in effect.threads:
            assert not thread.is_live
            self.contexts.pop(thread, None)
            for branch in thread.subtree():
                self._let_go(branch)

    def _prefillfinishedthreads(self, effect: do.PrefillFinishedThreads) -> None:
        assert any(not t.is_live for fork in effect.branch.forks for t in fork)

    def _resume(self, effect: do.Resume) -> None:
        branch, plan, join = effect.branch, effect.plan, self.machine.dialect.join
        assert branch in self.standing
        assert branch.state is BranchState.DECODING, "it has joined"
        assert not any(t.is_live for t in branch.waits_for)
        assert effect.room > 0
        if join.moves_kv:
            assert all(t in self.held for t in branch.waits_for), "their KV is all that there is of them"
        context = self.contexts[branch]
        if plan.keep is not None:
            del context[plan.keep :]
        context += plan.token_ids
        if join.moves_kv:
            assert branch.stitched_len == len(context) - len(plan.closing_ids)
        if branch.parent is None:
            self.joined.append(self.tokenizer.decode(list(plan.token_ids)))
        self.held.difference_update(branch.waits_for)
        self.standing.remove(branch)
        self.since[branch] = len(context)
        if effect.forks:
            self.to_fork.add(branch)
        self._goes_on(branch)
        assert self.left[branch] <= effect.room

    def _endjoined(self, effect: do.EndJoined) -> None:
        branch = effect.branch
        assert branch.parent is not None
        assert branch in self.standing
        assert branch.state is BranchState.JOINABLE
        self.held.difference_update(branch.waits_for)
        self.end_request(branch)

    def _endfamily(self, effect: do.EndFamily) -> None:
        assert not self.machine.family.is_live
        assert not any(t.is_live for t in effect.threads)
        assert self.machine.finish is None, "it ends once"
        for branch in list(self.contexts):
            assert branch.parent is None or branch in effect.threads
        self.contexts.clear()
        for branch in self.machine.family.root.subtree():
            self._let_go(branch)

    def _decodes(self, branch: Branch) -> None:
        assert branch.state is BranchState.DECODING
        assert branch.end is None
        assert branch in self.contexts
        assert branch not in self.standing

    def _let_go(self, branch: Branch) -> None:
        self.standing.discard(branch)
        self.held.discard(branch)
        if branch in self.closing:
            self.closing.remove(branch)

    # ---- what must hold between two steps ------------------------------------------------------

    def check(self) -> None:
        """What is known of each branch here is what the tree says; nothing of one that has ended is held."""
        machine = self.machine
        machine.family.check_integrity()
        for branch in machine.family.root.subtree():
            waits = branch.state in (BranchState.PARKED, BranchState.JOINABLE)
            is_later = any(branch is later for later in machine.later)
            is_closing = branch in self.closing
            assert (branch in self.standing) == (waits and not is_closing), branch
            assert (branch in self.contexts) == (branch.is_live and not is_later and not is_closing), branch
            assert not (is_closing and branch.end is None)
            assert branch.state is not BranchState.JOINABLE, "what can be joined is joined"
            assert not (branch in self.held and branch in self.contexts), "one owner"
            if not branch.is_live and branch.parent is not None and not branch.parent.is_live:
                assert branch not in self.held, branch
        self._check_tree()
        for branch, left in self.left.items():
            assert left >= 0, branch
        if machine.family.has_live_threads:
            assert machine.family.remaining > 0, "the budget binds"
        if machine.finish is not None:
            assert not machine.family.is_live

    def _check_tree(self) -> None:
        """What was recorded of each branch is its context."""
        assert self.machine.recording is not None
        self.tree.hear(self.machine.recording.take())
        tree = self.tree.tree([], None)
        last = {segment.thread: number for number, segment in enumerate(tree.segments)}
        for branch, context in self.contexts.items():
            number = last[ROOT if branch.parent is None else branch.index]
            assert tree.context(number) == context, branch
            position = tree.segments[number].position + len(tree.segments[number].token_ids)
            assert position == len(context) + branch.offset, branch

    def check_ended(self) -> None:
        """The family has ended: nothing is left of it, and all of it was told, once."""
        machine = self.machine
        assert not machine.family.is_live
        assert (self.contexts, self.standing, self.held, self.closing) == ({}, set(), set(), [])
        started = [t.index for e in machine.events if isinstance(e, Forked) for t in e.threads]
        ended = [e.index for e in machine.events if isinstance(e, ThreadEnded)]
        assert started == [t.index for t in machine.family.threads]
        assert sorted(ended) == started
        by_index = {e.index: e for e in machine.events if isinstance(e, ThreadEnded)}
        for thread in machine.family.threads:
            assert by_index[thread.index].num_tokens == thread.num_generated
            # it may have been cancelled while its last tokens got their KV
            assert thread.end in (by_index[thread.index].reason, ThreadEnd.CANCELLED)

    # ---- in words ------------------------------------------------------------------------------

    def _said(self, effect: Effect) -> str:
        """``effect`` in a few words: its name, the branch, and what goes with it."""
        match effect:
            case do.Start(thread=b) | do.Stop(thread=b):
                return f"{type(effect).__name__} {name(b)}"
            case do.Keep(thread=b, may_lack_kv=may_lack_kv):
                is_whole = self.machine.dialect.join.moves_kv and not may_lack_kv
                return f"Keep {name(b)}" + (" whole" if is_whole else "")
            case do.Forget(threads=threads):
                return " ".join(["Forget", *map(name, threads)])
            case do.Swap(branch=b, keep=keep, token_ids=ids):
                return f"Swap {name(b)} {keep} {self.tokenizer.decode(list(ids))}"
            case do.Resume(branch=b, plan=plan):
                kept = "" if plan.keep is None else f" {plan.keep}"
                return f"Resume {name(b)}{kept} {self.tokenizer.decode(list(plan.token_ids))}"
            case do.EndJoined(branch=b, how=how):
                return f"EndJoined {name(b)} {_HOW[how]}"
            case do.EndFamily(threads=threads, how=how):
                return " ".join(["EndFamily", _HOW[how], *map(name, threads)])
        return f"{type(effect).__name__} {name(effect.branch)}"


def name(branch: Branch) -> str:
    """``root``, or the index of a thread behind a t."""
    return "root" if branch.parent is None else f"t{branch.index}"


def named(machine: Machine, names: Sequence[str]) -> list[Branch]:
    """The branches of these names."""
    return [machine.family.root if n == "root" else machine.family.threads[int(n[1:])] for n in names]
