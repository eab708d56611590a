"""What a pruning policy knows of the threads of a vote, gathered as they write."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from forkjoin_scheduler.excerpt import excerpt
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.policy.own import WrongAnswer
from forkjoin_scheduler.policy.pruning import Pruning, ThreadFacts, VoteFacts


def _count(policy: Pruning, name: str, least: int) -> int:
    """What ``policy`` has under ``name``. Raises WrongAnswer where that is not a number from ``least`` on."""
    num = getattr(policy, name)
    if not isinstance(num, int) or num < least:
        raise WrongAnswer(f"{name}: expected a whole number from {least} on, got {excerpt(num)}")
    return num


class Confidence:
    """How sure a thread is: the mean over its last ``window`` tokens, and the least that this has been.

    Of an answer shorter than that, the least is the mean of all of it.
    """

    def __init__(self, window: int) -> None:
        self._last: deque[float] = deque(maxlen=window)
        self._sum = 0.0
        self._least: float | None = None

    def add(self, value: float) -> None:
        """How sure it was of its next token."""
        if len(self._last) == self._last.maxlen:
            self._sum -= self._last[0]
        self._last.append(value)
        self._sum += value
        if len(self._last) == self._last.maxlen:
            mean = self._sum / len(self._last)
            self._least = mean if self._least is None else min(self._least, mean)

    @property
    def now(self) -> float | None:
        """Of the last tokens; None before the first."""
        return self._sum / len(self._last) if self._last else None

    @property
    def least(self) -> float | None:
        """Of any stretch so far."""
        return self.now if self._least is None else self._least


class Pruner:
    """The policy of one vote, and what its threads have been like so far.

    Raises WrongAnswer where the policy, which may be anybody's, counts in other than whole numbers.
    """

    def __init__(self, policy: Pruning, vote: Vote) -> None:
        self.policy = policy
        #: As the policy has them when the vote begins: an error of its later would be the family's.
        self.num_logprobs = _count(policy, "num_logprobs", least=0)
        self._window = _count(policy, "window", least=1)
        self._probe_every = _count(policy, "probe_every", least=0)
        self._vote = vote
        self._confidence: dict[Branch, Confidence] = {}
        self._probes: dict[Branch, list[str | None]] = {}
        #: Tokens of all threads when the policy was asked last.
        self._asked_at = 0

    def is_due(self, num_generated: int, num_running: int, free: float) -> bool:
        """Whether the policy is to be asked after a step, after so many tokens of all threads."""
        is_due = (
            num_generated - self._asked_at >= self.policy.ask_every * num_running
            and free < self.policy.ask_below
        )
        if is_due:
            self._asked_at = num_generated
        return is_due

    def wrote(self, thread: Branch, logprobs: Iterable[Sequence[float]]) -> None:
        """``thread`` wrote tokens. ``logprobs``: of each of them those of the most likely ones, if known.

        -inf stands for what could not be sampled, and where vLLM returns none.
        """
        confidence = self._confidence.setdefault(thread, Confidence(self._window))
        for row in logprobs:
            if likely := [logprob for logprob in row if logprob > -math.inf]:
                confidence.add(-sum(likely) / len(likely))
        if self._probe_every:
            probes = self._probes.setdefault(thread, [])
            if thread.num_generated >= self._probe_every * (len(probes) + 1):
                probes.append(self._vote.peek(thread))

    def to_stop(
        self, threads: Sequence[Branch], running: set[Branch], holds_kv: Callable[[Branch], bool], free: float
    ) -> set[int]:
        """The positions of those of the ``running`` ones of a vote's ``threads`` that its policy stops.

        Where nobody has voted and none is left to start, the one of them that has written most is spared.
        Raises WrongAnswer where the policy names what is no thread of the vote.
        """
        tally = self._vote.tally(threads)
        facts = VoteFacts(
            [self._facts(t, holds_kv=holds_kv(t)) for t in threads if t in running],
            [self._facts(t) for t in threads if t.sibling_index in tally.results],
            tally,
            len(threads),
            free,
        )
        stopped = set(self.policy.stop(facts))
        if unknown := stopped - {t.sibling_index for t in threads}:
            raise WrongAnswer(
                f"expected sibling indices of threads that run, got {excerpt(unknown.pop())} in a vote of "
                f"{len(threads)}"
            )
        stopped &= {t.sibling_index for t in running}
        if stopped == tally.open and tally.leader is None:
            stopped.discard(max(facts.running, key=lambda t: (t.written, -t.sibling_index)).sibling_index)
        return stopped

    def _facts(self, thread: Branch, *, holds_kv: bool = False) -> ThreadFacts:
        confidence = self._confidence.get(thread)
        return ThreadFacts(
            thread.sibling_index,
            thread.num_generated,
            None if confidence is None else confidence.now,
            None if confidence is None else confidence.least,
            tuple(self._probes.get(thread, ())),
            holds_kv,
        )
