"""The thread events of one response, gathered: its threads, entry by entry, and its usage."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import (
    Continued,
    Counts,
    Event,
    Forked,
    Kept,
    ThreadEnded,
    Tokens,
    Voted,
    Waiting,
)
from forkjoin_server.answer.thread_ids import thread_id
from forkjoin_server.asgi import Json

#: What the families of a response add up to.
_COUNTS = ("num_threads", "critical_path_tokens", "total_tokens", "surplus_tokens")
#: Of a family's id what says which answer it is of: vLLM numbers choices before a request's id, prompts
#: after it (which ours ends), where there are several.
_CHOICE, _PROMPT = re.compile(r"(\d+)_"), re.compile(r"[-_](\d+)(?:-[0-9a-f]{8})?\Z")
#: How a thread ends that has not come to its own end, and what its entry says of that; else "stop".
_CUT_SHORT = {
    ThreadEnd.LENGTH: "length",
    ThreadEnd.REFUSED: "length",
    ThreadEnd.CANCELLED: "length",
    ThreadEnd.CUT: "cut",
    ThreadEnd.NOT_STARTED: "not_started",
    ThreadEnd.PRUNED: "pruned",
    ThreadEnd.CLIENT_CANCELLED: "cancelled",
}
#: What a thread waits for that runs again.
NOTHING = "nothing"


def finish_reason(reason: ThreadEnd) -> str:
    """The ``finish_reason`` that clients get for the engine's ``reason``."""
    return _CUT_SHORT.get(reason, "stop")


@dataclass
class ThreadLog:
    """All that a response says of its threads, event by event.

    Rules of the wire format: every entry has ``index``, dense over the response; all children of
    a fork are announced in one chunk, in increasing order; only ``content`` (and ``token_ids``) repeat, and
    ``waits_for``, whose key ``type`` the SDKs' helpers set where they would append to any other string.
    """

    key: str
    #: How many answers the response holds: choices times prompts.
    num_answers: int = 1
    #: How many of them each prompt has.
    num_choices: int = 1
    #: Whether the client asked for the threads: then it also learns that there were none.
    is_wanted: bool = False
    #: Whether an entry holds token ids beside its text.
    has_token_ids: bool = False
    #: What the tree has that each answer goes on from (``continues_tree``).
    num_given: int = 0
    threads: list[Json] = field(default_factory=list)
    #: The threads of each fork, by their indices.
    forks: list[list[int]] = field(default_factory=list)
    #: The running counts of each family: one for each choice (n > 1) or prompt that forked.
    families: dict[str, Counts] = field(default_factory=dict)
    #: What a best-of-N request chose: the index of the thread, the result that most have, who did not vote.
    vote: Json | None = None
    #: Whether the answer is kept, and what the request found of the one that it goes on from.
    lease: Json = field(default_factory=dict)
    #: The threads that had no vote: the others had decided it, a policy had stopped them, or the client.
    _left_out: dict[str, list[int]] = field(
        default_factory=lambda: {"cut": [], "not_started": [], "pruned": [], "cancelled": []}
    )
    #: What each thread has written so far.
    _num_tokens: Counter[int] = field(default_factory=Counter)

    @property
    def has_news(self) -> bool:
        """Whether the response gets anything that vLLM's own does not have."""
        return self.is_wanted or bool(self.families or self.lease or self.num_given)

    def delta(self, event: Event) -> list[Json]:
        """The entries of ``delta.threads`` that ``event`` adds, empty if none."""
        match event:
            case Forked():
                return self._forked(event)
            case Tokens():
                return self._wrote(event.index, event.text, event.token_ids)
            case Waiting():
                return [{"index": event.index, "waits_for": {"type": event.waits_for or NOTHING}}]
            case ThreadEnded():
                return self._ended(event)
            case Counts():
                self.families[event.family] = event
            case Kept():
                kept = {"tokens": event.num_tokens, "seconds": event.seconds, "refused": event.refusal}
                self.lease["kept"] = kept
            case Continued():
                self.lease["continued"] = event.state
            case Voted() if self.num_answers == 1:
                # Of several answers each has a vote of its own, and nowhere to stand.
                self.vote = {"index": event.index, "result": event.result, **self._left_out}
        return []

    def _forked(self, event: Forked) -> list[Json]:
        entries = [
            {
                "index": thread.index,
                "id": thread_id(self.key, thread.index),
                "parent_id": thread_id(self.key, event.parent_index),
                "title": thread.name,
                "content": "",
                **({"token_ids": []} if self.has_token_ids else {}),
            }
            for thread in event.threads
        ]
        self.threads += copy.deepcopy(entries)
        self.forks.append([thread.index for thread in event.threads])
        return entries

    def _ended(self, event: ThreadEnded) -> list[Json]:
        reason = finish_reason(event.reason)
        end = {"finish_reason": reason, "usage": {"completion_tokens": event.num_tokens}}
        self.threads[event.index] |= end
        if reason in self._left_out:
            self._left_out[reason].append(event.index)
        return [{"index": event.index, **end}]

    def _wrote(self, index: int, text: str, token_ids: list[int]) -> list[Json]:
        self._num_tokens[index] += len(token_ids)
        thread = self.threads[index]
        thread["content"] += text
        if not self.has_token_ids:
            return [{"index": index, "content": text}] if text else []
        thread["token_ids"] += token_ids
        return [{"index": index, "content": text, "token_ids": token_ids}]

    def cut_open(self) -> list[Json]:
        """The entries that end the threads which have not: the answer is over, a stop string cut them."""
        entries = []
        for thread in self.threads:
            if "finish_reason" not in thread:
                end = {
                    "finish_reason": "length",
                    "usage": {"completion_tokens": self._num_tokens[thread["index"]]},
                }
                thread |= end
                entries.append({"index": thread["index"], **end})
        return entries

    def correct_usage(self, usage: Json, answer: int | None = None) -> Json:
        """Count each generated token once, injected text not at all; add what forking gave.

        ``usage`` is vLLM's: of the whole response, or, in a chunk of a stream, of one ``answer`` so far.
        """
        # /v1/responses and /v1/messages have their own word for them, and the latter has no total
        word = "output_tokens" if "output_tokens" in usage else "completion_tokens"
        if not self.has_news or word not in usage:
            return usage
        counts = self._sum(f for name, f in self.families.items() if answer in (None, self._answer_of(name)))
        # vLLM leaves out what a stop string cut off; the families know all that was generated. And it knows
        # of answers that did not fork, and of tokens after what a family has said last: one step each.
        generated = max(counts["total_tokens"], usage[word] - counts.pop("surplus_tokens"))
        counts["critical_path_tokens"] += generated - counts["total_tokens"]
        counts["total_tokens"] = generated
        surplus = usage[word] - generated
        corrected = {name: usage[name] - surplus for name in (word, "total_tokens") if name in usage}
        vote = {} if self.vote is None else {"vote": self.vote}
        given = self.num_given * (self.num_answers if answer is None else 1)
        of_tree = {"given_tokens": given} if given else {}
        return usage | corrected | {"forkjoin": counts | of_tree | vote | self.lease}

    @staticmethod
    def _sum(families: Iterable[Counts]) -> Json:
        sums = dict.fromkeys(_COUNTS, 0)
        for family in families:
            sums = {name: value + getattr(family, name) for name, value in sums.items()}
        return sums

    def _answer_of(self, family: str) -> int:
        """The index of the answer that a family is of."""
        choice = _CHOICE.match(family) if self.num_choices > 1 else None
        prompt = (
            _PROMPT.match(family.rpartition(self.key)[2]) if self.num_answers > self.num_choices else None
        )
        return (int(prompt[1]) * self.num_choices if prompt else 0) + (int(choice[1]) if choice else 0)
