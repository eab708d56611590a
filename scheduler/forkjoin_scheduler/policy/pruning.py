"""Which threads of a vote are not worth going on with: by request only, for the answer may be another then.

The policies are those of three papers, as far as what an engine sees allows; where they differ, each says so.
A policy decides by facts. What it must not do, the engine sees to: where no thread has voted, one goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from forkjoin_scheduler.policy.tally import Tally


@dataclass(frozen=True)
class ThreadFacts:
    """A thread of a vote that has started, by its position in outline order."""

    sibling_index: int
    #: Tokens that it has written.
    written: int = 0
    #: How sure it was of its last tokens (``Confidence``), and the least that this ever was. None: not known.
    confidence: float | None = None
    lowest: float | None = None
    #: What it would have voted for at each probe so far, the last one last. None: nothing.
    probes: Sequence[str | None] = ()
    #: Whether it has KV blocks, which it gives back when it is stopped.
    holds_kv: bool = True


@dataclass(frozen=True)
class VoteFacts:
    """What is known of a vote after a step.

    ``num_threads``: how many it has in all. ``free``: the share of the engine's KV blocks that nobody holds.
    """

    running: Sequence[ThreadFacts]
    ended: Sequence[ThreadFacts] = ()
    tally: Tally = field(default_factory=lambda: Tally({}))
    num_threads: int = 0
    free: float = 1.0


class Pruning:
    """Stops none. Policies are its subclasses, one instance for each vote."""

    #: Alternatives to each token that confidence is reckoned with; 0: it is not needed.
    num_logprobs: int = 0
    #: Tokens at the end of a thread that confidence is the mean of.
    window: int = 64
    #: How many tokens lie between two probes of a thread; 0: it is not probed.
    probe_every: int = 0
    #: It is asked when the threads have written so many tokens each since it was asked last (0: each step) …
    ask_every: int = 8
    #: … and a smaller share of the engine's KV blocks than this is free.
    ask_below: float = 2.0

    def stop(self, facts: VoteFacts) -> set[int]:
        """The sibling indices of the running threads that are stopped now."""
        return set()


class LowConfidence(Pruning):
    """Those that are less sure than nearly all that have ended ever were (DeepConf, arXiv 2508.15260).

    How sure a thread is of a token, is the mean of -log p over the most likely ones (section 2.1 there):
    the surer, the larger. A quarter of the threads are waited for. Of the least sure stretch of each, the
    threshold is the percentile that keeps nine in ten (DeepConf-high, section 3.2). The paper's stretches
    are of 2,048 tokens, for answers of tens of thousands.
    """

    num_logprobs = 20
    #: Of those waited for, so many would not have been stopped.
    keep = 0.9
    #: The share of all threads that is waited for, and how many at least.
    warmup, min_warmup = 0.25, 2

    def stop(self, facts: VoteFacts) -> set[int]:
        """Those whose last stretch is below the threshold."""
        lowest = sorted(t.lowest for t in facts.ended if t.lowest is not None)
        if len(lowest) < max(self.warmup * facts.num_threads, self.min_warmup):
            return set()
        threshold = percentile(lowest, 1 - self.keep)
        return {
            t.sibling_index
            for t in facts.running
            if t.confidence is not None and t.written >= self.window and t.confidence < threshold
        }


class Agreement(Pruning):
    """Those that disagree, and all but a few when enough agree (Parallel-Probe, arXiv 2602.03845).

    Every 32 tokens it is read what a thread would vote for now. A result that more than half of all threads
    that have said anything have three times in a row is agreed on: those that had another one as often
    are stopped, and of those that had it all that the vote does not need. The paper lets the model write an
    answer at each probe; here it is what the thread has written by itself that is searched.
    """

    probe_every = 32
    #: So many probes in a row must say the same.
    patience = 3

    def stop(self, facts: VoteFacts) -> set[int]:
        """Those that have deviated for as long as the others agree, and those that agree in vain."""
        recent = {t.sibling_index: t.probes[-self.patience :] for t in facts.running}
        steady = {
            position: probes[0]
            for position, probes in recent.items()
            if len(probes) == self.patience and len(set(probes)) == 1 and probes[0] is not None
        }
        said = facts.tally.votes + Counter(r for r in steady.values() if r is not None)
        agreed = next((r for r, num in said.items() if 2 * num > self._num_that_spoke(facts)), None)
        if agreed is None:
            return set()
        deviating = {
            position
            for position, probes in recent.items()
            if len(probes) == self.patience and all(r not in (None, agreed) for r in probes)
        }
        return deviating | self._in_vain(
            facts.tally, agreed, sorted(p for p, r in steady.items() if r == agreed)
        )

    @staticmethod
    def _num_that_spoke(facts: VoteFacts) -> int:
        return facts.tally.votes.total() + sum(any(r is not None for r in t.probes) for t in facts.running)

    @staticmethod
    def _in_vain(tally: Tally, agreed: str, agreeing: list[int]) -> set[int]:
        """Those of the ``agreeing`` threads that the agreed result wins the vote without."""
        most = max((num for result, num in tally.votes.items() if result != agreed), default=0)
        return set(agreeing[max(most + 1 - tally.votes[agreed], 0) :])


class MemoryPressure(Pruning):
    """Where KV blocks run out, the least sure, in the place of a preemption (STEP, arXiv 2601.09093).

    One a step, until enough are free. The paper judges by the model's hidden states, with a classifier that
    was trained for it; here it is by confidence, as ``LowConfidence`` reckons it.
    """

    num_logprobs = 20
    ask_every, ask_below = 0, 0.05

    def stop(self, facts: VoteFacts) -> set[int]:
        """The least sure of several that hold blocks."""
        holding = [t for t in facts.running if t.holds_kv and t.confidence is not None]
        if facts.free >= self.ask_below or len(holding) < 2:
            return set()
        return {min(holding, key=lambda t: (t.confidence, -t.sibling_index)).sibling_index}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the sorted ``values`` lies, between two of them in proportion."""
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


#: By the names that requests have for them.
POLICIES: dict[str, type[Pruning]] = {
    "confidence": LowConfidence,
    "agreement": Agreement,
    "memory": MemoryPressure,
}
