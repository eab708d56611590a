"""The thread events of one response, gathered: its threads, entry by entry, and its usage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

#: What the families of a response add up to.
_COUNTS = ("num_threads", "critical_path_tokens", "total_tokens", "surplus_tokens")
#: Those that are all of the answer's tokens where nothing forked: one step each.
_ALL_TOKENS = ("critical_path_tokens", "total_tokens")


@dataclass
class ThreadLog:
    """All that a response says of its threads, event by event.

    Rules of the wire format: every entry has ``index``, dense over the response; all children of
    a fork are announced in one chunk, in increasing order; only ``content`` repeats.
    """

    key: str
    #: How many answers the response holds: choices times prompts.
    num_answers: int = 1
    #: Whether the client asked for the threads: then it is told that there were none, too.
    is_wanted: bool = False
    threads: list[Json] = field(default_factory=list)
    #: The running counts of each family: one for each choice (n > 1) or prompt that forked.
    families: dict[str, Json] = field(default_factory=dict)
    #: What a best-of-N request chose: the index of the thread, and the result that most have.
    vote: Json | None = None

    @property
    def has_news(self) -> bool:
        """Whether the response is to be told anything that vLLM's own does not say."""
        return self.is_wanted or bool(self.families)

    @property
    def ended(self) -> Json | None:
        """What the families of the response add up to so far, None if nothing forked."""
        if not self.families:
            return None
        return {count: sum(f[count] for f in self.families.values()) for count in _COUNTS}

    def delta(self, event: Json) -> list[Json]:
        """The entries of ``delta.threads`` that ``event`` adds, empty if none."""
        kind = event["type"]
        if kind == "forked":
            entries = [
                {
                    "index": t["index"],
                    "id": self._thread_id(t["index"]),
                    "parent_id": self._thread_id(event["parent_index"]),
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
        if kind in ("progress", "family_ended"):
            self.families[event["family"]] = event
        elif kind == "voted" and self.num_answers == 1:
            # Of several answers each has a vote of its own, and nowhere to stand.
            self.vote = {"index": event["index"], "result": event["result"]}
        return []

    def _thread_id(self, index: int) -> str:
        return "root" if index < 0 else f"th_{self.key}_{index}"

    def correct_usage(self, usage: Json) -> Json:
        """Count each generated token once, injected text not at all; add what forking gave."""
        if not self.has_news:
            return usage
        # /v1/responses and /v1/messages have their own word for them, and the latter has no total
        word = "output_tokens" if "output_tokens" in usage else "completion_tokens"
        counts = self.ended
        if counts is None:
            counts = dict.fromkeys(_COUNTS, 0) | dict.fromkeys(_ALL_TOKENS, usage[word])
        if len(self.families) >= self.num_answers:
            # vLLM leaves out what a stop string cut off; the families know all that was generated
            surplus = usage[word] - counts["total_tokens"]
        else:
            surplus = counts["surplus_tokens"]
        corrected = {name: usage[name] - surplus for name in (word, "total_tokens") if name in usage}
        forkjoin = {name: counts[name] for name in _COUNTS if name != "surplus_tokens"}
        if self.vote is not None:
            forkjoin |= {"vote": self.vote}
        return usage | corrected | {"forkjoin": forkjoin}
