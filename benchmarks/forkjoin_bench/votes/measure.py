"""Runs votes in an engine and says of each what it came to."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forkjoin_bench.vllm_seam.engine import sampling, step
from forkjoin_scheduler.publish.events import Counts, Event, ThreadEnded
from forkjoin_scheduler.publish.events import Voted as VotedEvent
from forkjoin_scheduler.publish.feed import FEEDS
from forkjoin_scheduler.settings import KEY

if TYPE_CHECKING:
    from forkjoin_bench.vllm_seam.engine import LLM

#: What requests say, by the name of the way that a vote is run.
WAYS: dict[str, dict[str, Any]] = {
    "all": {"wait_for_all": True},
    "early": {},
    "waves": {"confidence": 1.0},
    "0.95": {"confidence": 0.95},
    "prune confidence": {"prune": "confidence"},
    "prune agreement": {"prune": "agreement"},
    "prune memory": {"prune": "memory"},
}
#: Those whose answer is that of all threads.
LOSSLESS = ("early", "waves")
#: How threads end that did not come to their own end.
CUT = ("cut", "not_started", "pruned")


@dataclass(frozen=True)
class Asked:
    """A vote: its question, and the seed of its threads."""

    prompt: str
    seed: int


@dataclass
class Voted:
    """What a vote came to. ``steps``, ``cpu_s``: from its request to its end.

    That is CPU time of this process, in which the engine runs; other work on the machine does not count. With
    one thread for the model it is the time that the vote takes on an idle core.
    """

    way: str
    seed: int
    cpu_s: float = 0.0
    steps: int = 0
    tokens: int = 0
    critical_path: int = 0
    index: int = -1
    result: str | None = None
    token_ids: list[int] = field(default_factory=list)
    #: Threads that did not come to their own end, by how they ended.
    left_out: dict[str, int] = field(default_factory=dict)


class Bench:
    """An engine of ``max_num_seqs`` slots, and what its families have told."""

    def __init__(self, llm: LLM) -> None:
        self._engine = llm.llm_engine
        self._llm = llm
        self._told: list[Event] = []
        #: What each family told, by the id of its request.
        self._families: dict[str, list[Event]] = {}
        FEEDS.observers.append(self._observe)

    def _observe(self, event: Event, _: int | None) -> None:
        # the events of one family are published together, its end the last of them
        if isinstance(event, ThreadEnded | VotedEvent):
            self._told.append(event)
        elif isinstance(event, Counts):
            self._families.setdefault(event.family, []).extend([*self._told, event])
            self._told.clear()

    def run(self, way: str, asked: list[Asked], best_of: int, options: dict[str, Any]) -> list[Voted]:
        """Run all of ``asked`` at once; an empty prefix cache before them. ``options``: of the sampling."""
        self._llm.reset_prefix_cache()
        self._families.clear()
        forkjoin = {"best_of": best_of, "vote": options["vote"], **WAYS[way]}
        began, steps, voted = time.process_time(), 0, {}
        for vote in asked:
            params = sampling(
                temperature=options["temperature"],
                max_tokens=options["max_tokens"],
                seed=vote.seed,
                extra_args={KEY: forkjoin},
            )
            request_id = _id_of(way, vote.seed)
            self._engine.add_request(request_id, vote.prompt, params)
            voted[request_id] = Voted(way, vote.seed)
        while self._engine.has_unfinished_requests():
            outputs, steps = step(self._llm), steps + 1
            for output in outputs:
                if output.finished:
                    done = voted[output.request_id]
                    done.cpu_s, done.steps = time.process_time() - began, steps
                    done.token_ids = list(output.outputs[0].token_ids)
        for family, events in self._families.items():
            _take_in(next(v for i, v in voted.items() if family.startswith(i)), events)
        if silent := [i for i, v in voted.items() if v.index < 0]:
            raise RuntimeError(f"expected a family to tell of each vote, none did of {', '.join(silent)}")
        return list(voted.values())


def _id_of(way: str, seed: int) -> str:
    """The id of a vote's request, to which vLLM appends: that of no other vote begins with it."""
    return f"{way} {seed}."


def _take_in(voted: Voted, events: list[Event]) -> None:
    """Note what the family of a vote told."""
    ended = events[-1]
    assert isinstance(ended, Counts)
    voted.tokens, voted.critical_path = ended.total_tokens, ended.critical_path_tokens
    reasons = Counter(e.reason.value for e in events if isinstance(e, ThreadEnded))
    voted.left_out = {reason: reasons[reason] for reason in CUT if reasons[reason]}
    for event in events:
        if isinstance(event, VotedEvent):
            voted.index, voted.result = event.index, event.result
