"""The spans of a request's threads, worked out from what is told of its family.

Pure: no clock, no OpenTelemetry. ``vllm_seam/tracing.py`` makes real spans of these, beneath the
one that vLLM makes of the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Attributes = dict[str, str | int]

#: The index of the request itself, as a parent of threads.
ROOT = -1


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
    """What has been told of one family. Threads by index: a parent always stands before its threads.

    >>> spans = FamilySpans()
    >>> threads = [{"index": 0, "number": "1", "title": "x"}]
    >>> spans.hear({"type": "forked", "parent_index": -1, "shared_tokens": 9, "threads": threads}, 100)
    >>> spans.hear({"type": "thread_ended", "index": 0, "reason": "stop", "num_tokens": 5}, 200)
    >>> spans.threads[0].start_ns, spans.threads[0].end_ns, spans.root.events[0][0]
    (100, 200, 'forkjoin.fork')
    """

    root: BranchSpan = field(default_factory=BranchSpan)
    threads: dict[int, BranchSpan] = field(default_factory=dict)

    def hear(self, event: dict[str, Any], at_ns: int) -> None:
        """Take in an event (of ``vllm_seam/wire.py``); those that are not of a branch change nothing."""
        match event:
            case {"type": "forked", "parent_index": parent_index, "threads": threads}:
                shared = {"forkjoin.fork.shared_tokens": event["shared_tokens"]}
                self._note(parent_index, "fork", at_ns, {"forkjoin.fork.width": len(threads)} | shared)
                for thread in threads:
                    self._start(thread, parent_index, at_ns)
            case {"type": "threads_started", "parent_index": parent_index, "threads": threads}:
                self._note(parent_index, "start", at_ns, {"forkjoin.start.num_threads": len(threads)})
                for index in threads:
                    self.threads[index].start_ns = at_ns
            case {"type": "thread_ended", "index": index, "reason": reason}:
                span = self.threads[index]
                span.end_ns = at_ns
                if reason == "not_started":
                    span.start_ns = at_ns
                span.attributes["forkjoin.thread.num_tokens"] = event["num_tokens"]
                span.attributes["forkjoin.thread.end_reason"] = reason
                if "policy" in event:
                    span.attributes["forkjoin.thread.policy"] = event["policy"]
            case {"type": "joined", "parent_index": index, "prefilled_tokens": num_tokens}:
                self._note(index, "join", at_ns, {"forkjoin.join.prefilled_tokens": num_tokens})
            case {"type": "refused" | "limited" as kind, "reason": reason, "policy": policy}:
                why = {f"forkjoin.{kind}.reason": reason, f"forkjoin.{kind}.policy": policy}
                self._note(event.get("parent_index", ROOT), kind, at_ns, why)
            case {"type": "voted", "index": index, "result": result}:
                chosen: Attributes = {"forkjoin.vote.thread": index}
                chosen |= {} if result is None else {"forkjoin.vote.result": result}
                self._note(ROOT, "vote", at_ns, chosen)
            case {"type": "progress" | "family_ended"}:
                counts = ("num_threads", "critical_path_tokens", "total_tokens")
                self.root.attributes |= {f"forkjoin.{count}": event[count] for count in counts}

    def _start(self, thread: dict[str, Any], parent_index: int, at_ns: int) -> None:
        attributes: Attributes = {
            "forkjoin.thread.index": thread["index"],
            "forkjoin.thread.title": thread["title"] or thread["number"],
            "forkjoin.thread.parent": parent_index,
        }
        self.threads[thread["index"]] = BranchSpan(parent_index, at_ns, attributes=attributes)

    def _note(self, index: int, name: str, at_ns: int, attributes: Attributes) -> None:
        span = self.root if index == ROOT else self.threads[index]
        span.events.append((f"forkjoin.{name}", at_ns, attributes))
