"""Thread events as clients see them: ``delta.threads``, ``message.threads`` and the usage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

#: What the families of a response add up to.
_COUNTS = ("num_threads", "critical_path_tokens", "total_tokens", "injected_tokens")


@dataclass
class ThreadLog:
    """All that a response says of its threads, event by event.

    Rules of the wire format: every entry has ``index``, dense over the response; all children of
    a fork are announced in one chunk, in increasing order; only ``content`` repeats.
    """

    key: str
    threads: list[Json] = field(default_factory=list)
    ended: Json | None = None

    def delta(self, event: Json) -> list[Json]:
        """The entries of ``delta.threads`` that ``event`` adds, empty if none."""
        kind = event["type"]
        if kind == "forked":
            entries = [
                {
                    "index": t["index"],
                    "id": f"th_{self.key}_{t['index']}",
                    "parent_id": "root",
                    "title": t["title"] or t["number"],
                    "content": "",
                }
                for t in event["threads"]
            ]
            self.threads += [dict(e) for e in entries]
            return entries
        if kind == "tokens" and event["text"]:
            self.threads[event["index"]]["content"] += event["text"]
            return [{"index": event["index"], "content": event["text"]}]
        if kind == "thread_ended":
            end = {
                "finish_reason": "length" if event["reason"] in ("length", "cancelled") else "stop",
                "usage": {"completion_tokens": event["num_tokens"]},
            }
            self.threads[event["index"]] |= end
            return [{"index": event["index"], **end}]
        if kind == "family_ended":
            # one family for each choice (n > 1) or prompt that forked
            before = self.ended or {}
            self.ended = {count: before.get(count, 0) + event[count] for count in _COUNTS}
        return []

    def correct_usage(self, usage: Json) -> Json:
        """Count each generated token once, injected text not at all; add what forking gave."""
        if self.ended is None:
            return usage
        injected = self.ended["injected_tokens"]
        # /v1/responses has its own word for them
        generated = "output_tokens" if "output_tokens" in usage else "completion_tokens"
        return usage | {
            generated: usage[generated] - injected,
            "total_tokens": usage["total_tokens"] - injected,
            "forkjoin": {
                "num_threads": self.ended["num_threads"],
                "critical_path_tokens": self.ended["critical_path_tokens"],
                "total_tokens": self.ended["total_tokens"],
            },
        }
