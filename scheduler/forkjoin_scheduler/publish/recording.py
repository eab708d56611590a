"""The tree of a family as it was computed: which tokens, in which context, at which positions.

A recording is made only for a request that wants it. It notes segments: tokens in a row of one branch. A
branch begins another segment when it starts, after a join and after a swap: its context is no longer what it
wrote. So it does where other weights go on with it. What is noted leaves as events, step by step. So there is
a tree of a request that ends early, too.

Places in a context are counted as its KV slots are. Positions differ from them by the branch's offset
(``families/stitch.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.families.stitch import num_skipped
from forkjoin_scheduler.joins.joined import closing_ids_of, written
from forkjoin_scheduler.machine.effects import Effect, Resume, Start, Swap
from forkjoin_scheduler.publish.events import (
    ROOT,
    Event,
    Joins,
    SegmentBegan,
    SegmentGiven,
    SegmentWrote,
)
from forkjoin_scheduler.publish.weights import Weights
from forkjoin_scheduler.request.given import Part

if TYPE_CHECKING:
    from forkjoin_scheduler.machine.machine import Machine

#: The effects after which a branch has another context.
CONTEXTS = (Start, Resume, Swap)


class Sampling(Protocol):
    """What of a request's sampling parameters its tree tells."""

    seed: int | None
    logprobs: int | None


@dataclass(eq=False)
class _Segment:
    """``start``: tokens of its context before its own. ``version``: of the weights that write it.

    ``has_old_kv``: what its beginning has told. ``is_given``: whether an earlier answer has written it.
    """

    number: int
    start: int
    position: int
    num_tokens: int
    parent: _Segment | None
    seed: int | None
    has_old_kv: bool
    version: str | None = None
    is_given: bool = False


def branch_of(effect: Start | Resume | Swap) -> Branch:
    """The branch whose context it changes."""
    return effect.thread if isinstance(effect, Start) else effect.branch


class Recording:
    """Owns the segments of a family, and the events that tell of them until these are taken."""

    def __init__(self, prompt_ids: Sequence[int], sampling: Sampling, weights: Weights | None = None) -> None:
        self._num_top = sampling.logprobs
        self._weights = weights or Weights()
        #: Whether the family goes on with KV that earlier weights have computed.
        self.has_old_kv = False
        self._num_segments = 0
        self._events: list[Event] = []
        #: The segment that each branch is in, by its index.
        self._last: dict[int, _Segment] = {}
        self._begin(ROOT, prompt_ids, context=None, start=0, position=0, seed=sampling.seed)

    def take(self) -> list[Event]:
        """What was noted since this was asked last."""
        events, self._events = self._events, []
        return events

    def wrote(self, index: int, token_ids: Sequence[int], rows: Sequence[Any] | None) -> None:
        """A branch sampled ``token_ids``; ``rows``: of each its logprobs as the engine has them.

        A token without a row was put there by the engine where the request ends, and is nobody's context.
        """
        logprobs: list[float] | None = None
        top: list[dict[int, float]] | None = None
        if rows is not None and self._num_top is not None:
            token_ids = token_ids[: len(rows)]
            rows = rows[: len(token_ids)]
            likely = [(row.logprob_token_ids[0].tolist(), row.logprobs[0].tolist()) for row in rows]
            logprobs = [values[0] for _, values in likely]
            if self._num_top:
                end = None if self._num_top < 0 else self._num_top + 1
                top = [dict(zip(ids[1:end], values[1:end], strict=True)) for ids, values in likely]
        if not token_ids:
            return
        segment = self._written_by(index, self._weights.version)
        segment.num_tokens += len(token_ids)
        wrote = SegmentWrote(
            segment=segment.number,
            token_ids=list(token_ids),
            weight_version=self._weights.version,
            logprobs=logprobs,
            top=top,
        )
        self._events.append(wrote)

    def given(self, index: int, part: Part) -> None:
        """A branch goes on after ``part``, which an earlier answer has written: a segment of its own."""
        segment = self._last[index]
        if segment.is_given:
            segment = self._following(index, segment)
        segment.num_tokens += len(part.token_ids)
        segment.is_given = True
        self._events.append(SegmentGiven(segment=segment.number, part=part))

    def _written_by(self, index: int, version: str) -> _Segment:
        """The segment that a branch writes with the weights of this ``version``.

        A new one after others, after what was given, and where the last has begun before its KV was that of
        earlier weights.
        """
        segment = self._last[index]
        is_of_others = segment.is_given or segment.version not in (None, version)
        if is_of_others or (self.has_old_kv and not segment.has_old_kv):
            segment = self._following(index, segment)
        segment.version = version
        return segment

    def _following(self, index: int, last: _Segment) -> _Segment:
        """A segment of the same branch that goes on after the ``last``."""
        start, position = last.start + last.num_tokens, last.position + last.num_tokens
        return self._begin(index, [], context=last, start=start, position=position, seed=last.seed)

    def note(self, machine: Machine, effect: Effect, seed: int | None) -> None:
        """An effect has been performed after which its branch has another context, and this ``seed``."""
        match effect:
            case Start(thread=thread):
                self._start(thread, seed)
            case Resume(branch=branch) if machine.dialect.join.moves_kv:
                self._stitch(machine, effect, seed)
            case Resume(branch=branch, plan=plan):
                last = self._last[branch.index]
                keep = last.start + last.num_tokens if plan.keep is None else plan.keep
                self._go_on(branch, keep, plan.token_ids, seed)
            case Swap(branch=branch, keep=keep, token_ids=token_ids):
                self._go_on(branch, keep, token_ids, seed)

    def _start(self, thread: Branch, seed: int | None) -> None:
        assert thread.plan is not None
        assert thread.parent is not None
        parent = self._last[thread.parent.index]
        self._begin(
            thread.index,
            thread.plan.header_ids,
            context=parent if thread.fork_len else None,
            start=thread.fork_len,
            position=thread.fork_len + thread.offset,
            seed=seed,
            forked_by=parent.number,
        )

    def _go_on(self, branch: Branch, keep: int, token_ids: Sequence[int], seed: int | None) -> None:
        """``branch`` goes on with ``token_ids`` behind the first ``keep`` tokens of its context."""
        last = self._last[branch.index]
        self._begin(
            branch.index, token_ids, context=last, start=keep, position=keep + branch.offset, seed=seed
        )

    def _stitch(self, machine: Machine, effect: Resume, seed: int | None) -> None:
        """A branch goes on beside the KV of its threads."""
        branch, threads = effect.branch, effect.branch.waits_for
        self._begin(
            branch.index,
            effect.plan.closing_ids,
            context=self._last[branch.index],
            start=branch.stitched_len,
            position=branch.stitched_len + branch.offset,
            seed=seed,
            joined=[self._close(machine, thread, is_first=thread is threads[0]) for thread in threads],
            cut=threads[0].fork_len,
        )

    def _close(self, machine: Machine, thread: Branch, *, is_first: bool) -> Joins:
        """What a stitched join takes of ``thread``, with what the engine closes it with."""
        segment, num_cut = self._last[thread.index], len(thread.token_ids) - len(written(thread))
        while num_cut > segment.num_tokens and segment.parent is not None:
            num_cut -= segment.num_tokens
            segment = segment.parent
        num_tokens = segment.num_tokens - num_cut
        if closing := closing_ids_of(machine.dialect, thread, machine.world.tokenizer):
            start, position = segment.start + num_tokens, segment.position + num_tokens
            segment = self._begin(thread.index, closing, context=segment, start=start, position=position)
            num_tokens = len(closing)
        skipped = num_skipped(thread, is_first=is_first)
        return Joins(segment=segment.number, num_tokens=num_tokens, num_skipped=skipped)

    def _begin(
        self,
        index: int,
        token_ids: Sequence[int],
        *,
        context: _Segment | None,
        start: int,
        position: int,
        seed: int | None = None,
        forked_by: int | None = None,
        joined: Sequence[Joins] = (),
        cut: int | None = None,
    ) -> _Segment:
        """A branch goes on in a new segment, behind ``context`` up to ``cut`` (None: ``start``)."""
        cut = start if cut is None else cut
        while context is not None and context.start >= cut:
            context = context.parent
        segment = _Segment(
            self._num_segments, start, position, len(token_ids), context, seed, self.has_old_kv
        )
        self._num_segments += 1
        self._last[index] = segment
        began = SegmentBegan(
            segment=segment.number,
            index=index,
            token_ids=list(token_ids),
            position=position,
            parent=None if context is None else context.number,
            fork_offset=0 if context is None else cut - context.start,
            forked_by=forked_by,
            joined=list(joined),
            seed=seed,
            has_old_kv=segment.has_old_kv,
        )
        self._events.append(began)
        return segment
