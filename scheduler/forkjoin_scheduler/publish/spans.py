"""The spans of a request's threads, computed from its family's events.

Pure: no clock, no OpenTelemetry. ``vllm_seam/front_end/tracing.py`` makes real spans of these, beneath the
one that vLLM makes of the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import (
    ROOT,
    Counts,
    Event,
    Forked,
    Joined,
    Limited,
    NewThread,
    Refused,
    ThreadEnded,
    ThreadsStarted,
    Tolerated,
    Voted,
)

Attributes = dict[str, str | int]


@dataclass
class BranchSpan:
    """The span of one branch: when it ran (ns since the epoch), and what happened in it."""

    parent_index: int = ROOT
    start_ns: int = 0
    #: None while it runs.
    end_ns: int | None = None
    attributes: Attributes = field(default_factory=dict)
    #: (name, ns since the epoch, attributes)
    events: list[tuple[str, int, Attributes]] = field(default_factory=list)


@dataclass
class FamilySpans:
    """What is known of one family. Threads by index: a parent always stands before its threads.

    >>> spans = FamilySpans()
    >>> thread = NewThread(index=0, number="1", title="x")
    >>> spans.hear(Forked(parent_index=ROOT, shared_tokens=9, threads=[thread]), 100)
    >>> spans.hear(ThreadEnded(index=0, reason=ThreadEnd.STOP, num_tokens=5), 200)
    >>> spans.threads[0].start_ns, spans.threads[0].end_ns, spans.root.events[0][0]
    (100, 200, 'forkjoin.fork')
    """

    root: BranchSpan = field(default_factory=BranchSpan)
    threads: dict[int, BranchSpan] = field(default_factory=dict)

    def hear(self, event: Event, at_ns: int) -> None:
        """Take in an event; those that are not of a branch change nothing."""
        match event:
            case Forked():
                width, shared = len(event.threads), event.shared_tokens
                self._note(event.parent_index, "fork", at_ns, width=width, shared_tokens=shared)
                for thread in event.threads:
                    self._start(thread, event.parent_index, at_ns)
            case ThreadsStarted():
                self._note(event.parent_index, "start", at_ns, num_threads=len(event.threads))
                for index in event.threads:
                    self.threads[index].start_ns = at_ns
            case ThreadEnded():
                self._end(event, at_ns)
            case Joined():
                num_tokens = event.prefilled_tokens
                self._note(event.parent_index, "join", at_ns, prefilled_tokens=num_tokens)
            case Refused() | Tolerated() | Limited():
                index = ROOT if isinstance(event, Limited) else event.parent_index
                why = {"reason": event.reason, "policy": str(event.policy)}
                self._note(index, event.kind, at_ns, **why)
            case Voted():
                result = {} if event.result is None else {"result": event.result}
                self._note(ROOT, "vote", at_ns, thread=event.index, **result)
            case Counts():
                self.root.attributes |= {
                    "forkjoin.num_threads": event.num_threads,
                    "forkjoin.critical_path_tokens": event.critical_path_tokens,
                    "forkjoin.total_tokens": event.total_tokens,
                }

    def _start(self, thread: NewThread, parent_index: int, at_ns: int) -> None:
        attributes: Attributes = {
            "forkjoin.thread.index": thread.index,
            "forkjoin.thread.title": thread.name,
            "forkjoin.thread.parent": parent_index,
        }
        self.threads[thread.index] = BranchSpan(parent_index, at_ns, attributes=attributes)

    def _end(self, event: ThreadEnded, at_ns: int) -> None:
        span = self.threads[event.index]
        span.end_ns = at_ns
        if event.reason is ThreadEnd.NOT_STARTED:
            span.start_ns = at_ns
        span.attributes["forkjoin.thread.num_tokens"] = event.num_tokens
        span.attributes["forkjoin.thread.end_reason"] = event.reason.value
        if event.policy is not None:
            span.attributes["forkjoin.thread.policy"] = event.policy.value

    def _note(self, index: int, name: str, at_ns: int, **attributes: str | int) -> None:
        span = self.root if index == ROOT else self.threads[index]
        named = {f"forkjoin.{name}.{key}": value for key, value in attributes.items()}
        span.events.append((f"forkjoin.{name}", at_ns, named))
