"""The real scheduler without a model, driven at random.

Requests come and are aborted, the prefix cache is reset, and in the place of a model stands whoever strings
together phrases of the dialect (``stand_in.py``). Whatever comes of it: each request ends once, each thread
that starts ends, nothing hangs, and in the end every block, slot and queue entry is back.

All that is random comes of a run's name, so a run can be had again: ``Drive.named("apar", "pressure", 7,
model).run()``. And what a request writes comes of its own name, so the answers can be compared with those
of a run in which nothing disturbs (``Drive.calm``), and so can what they were sampled from. Many at once:
``python -m tests.engine.random_drive --families 20000``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.request import Request, RequestStatus

from forkjoin_bench.vllm_seam.fed import without_model
from forkjoin_bench.vllm_seam.offloading import offloading
from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import builtin_names
from forkjoin_scheduler.machine.cancelling import CANCELLING, ask
from forkjoin_scheduler.publish.events import (
    Admission,
    Event,
    FamilyEnded,
    Forked,
    InternalError,
    Limited,
    Load,
    Refused,
    ThreadEnded,
)
from forkjoin_scheduler.publish.injected import INJECTED_LOGPROB
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_scheduler.vllm_seam.compat import WORKER
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer
from tests.engine.accounts import check_accounts
from tests.engine.copies import Copies, speculation
from tests.engine.harness import snapshot
from tests.engine.invariants import check_invariants
from tests.engine.moves import Moves
from tests.engine.renamed import dialect_for, model_for
from tests.engine.stand_in import LogprobsRow, StandIn, rows_in

END = "<|end|>"
#: What some requests end at, in the front end.
STOP = "yyx"
TEXT = ("x", "yy")
RESTLESS, FICKLE = "tests.engine.matrix_case.Restless", "tests.engine.matrix_case.Fickle"


def _step(number: int, depends_on: str = "") -> str:
    return f"Transient Step {number}: a; Dependency: [{depends_on}]"


#: What is written, phrase by phrase. Those that stand twice are to come twice as often.
PHRASES: dict[str, tuple[str, ...]] = {
    "threadweaver": (
        *TEXT,
        "<Parallel><Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>",
        "<Outlines><Outline>1: a</Outline></Outlines>",
        "</Outlines>",
        *("</Thread>", "</Thread>"),
        "</Parallel>",
        *(END, END),
    ),
    "parallel-r1": (*TEXT, "<Parallel>", "</Path>", "</Path>", "</Parallel>", END),
    "multiverse": (
        *TEXT,
        "<Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>",
        "<Goal><Outline>1: a</Outline><Outline>2: b</Outline><Outline>3: c</Outline></Goal>",
        "</Goal>",
        *("</Path>", "</Path>", "</Path>"),
        "</Parallel>",
        END,
    ),
    "npr": (
        *TEXT,
        "<guideline><plan>1: a</plan><plan>2: b</plan></guideline>",
        "</guideline>",
        *("</step>", "</step>"),
        END,
    ),
    "medverse": (
        *TEXT,
        f"<Plan>{_step(1)}{_step(2)}</Plan>",
        f"<Plan>{_step(1)}{_step(2)}{_step(3, '1')}{_step(4, '3, 9')}</Plan>",
        "</Plan>",
        *("</Step>", "</Step>", "</Step>"),
        END,
    ),
    "aspd": (
        *TEXT,
        "<|title|>a<|/title|><|title|>b<|/title|><|para|>",
        "<|title|>a<|/title|><|title|>a<|/title|><|para|>",
        "<|para|>",
        *("<|/branch|>", "<|/branch|>"),
        END,
    ),
    "apr": (
        "x",
        "Moving to Node #0\nCurrent State: 5:[1, 2], Operations: []\n",
        (
            "<Calling Sub Searches>\n<Start Sub Search 0 at level 1> Moving to Node #0\n"
            f"<Start Sub Search 1 at level 1> Moving to Node #0\n<End Calling Sub Searches>\n{END}"
        ),
        "<Sub Searches>",
        "Goal Reached\n 1 Goal Reached",
        *(END, END),
    ),
    "apar": (*TEXT, "[SplitMask]", "1. x[SplitMask]", "\n", END, END),
    "hpd": (*TEXT, "<FORK>", END, END),
    "asyncthink": (
        "x",
        *("<FORK-1>do</FORK-1>", "<FORK-2>do</FORK-2>"),
        *("<JOIN-1>", "<JOIN-2>", "<JOIN-3>"),
        *("<RETURN>x</RETURN>", "</RETURN>"),
        END,
    ),
    "pasta": (
        *TEXT,
        *('<promise topic="a" tokens="9"/>', '<promise topic="b" tokens="9"/>'),
        *("</async>", "</async>", "</async>"),
        *("<sync/>", "<sync/>"),
        "<promise/>",
        END,
    ),
    "skeleton": ("x", f"1. a\n2. b\n{END}", f"1. a\n1. b\n{END}", END),
    "parathinker": (*TEXT, "</think1>", "</think2>", "</think3>", END),
    "pacore": (*TEXT, "</think>", END, END),
    "ssft": (*TEXT, r"\boxed{x}", r"\boxed{yy}", END),
    "explicit": (*TEXT, END),
}
PHRASES["threadweaver-eval"] = PHRASES["threadweaver"]
PHRASES["medverse-eval"] = PHRASES["medverse"]


@dataclass(frozen=True)
class Kind:
    """What a run is to have much of. Of several values each run, or each request, draws one."""

    max_num_seqs: tuple[int, ...]
    #: KV blocks beside the few that a scheduler starts with.
    spare_blocks: tuple[int, ...]
    #: Of a prompt; negative: so many less than the context holds.
    prompt_tokens: tuple[int, ...]
    max_tokens: tuple[int, ...]
    #: The chance that a step has another request, or a reset of the prefix cache.
    arrival: float
    reset: float
    #: More text between a dialect's phrases, so that answers get long.
    text: tuple[str, ...] = ()
    num_requests: int = 14
    block_sizes: tuple[int, ...] = (4, 8, 16)
    #: The chance that a step has a move (``moves.py``).
    move: float = 0.0
    #: Whether some runs are scheduled by priority, and some requests end at a stop string.
    has_all: bool = False
    #: Whether all requests ask for a vote.
    only_votes: bool = False
    #: The chance that before a step a client cancels a thread.
    cancel: float = 0.0
    #: Steps that a KV connector's copies take; none: there is no connector.
    transfer_steps: tuple[int, ...] = ()


MIXED = Kind(
    max_num_seqs=(2, 3, 8),
    spare_blocks=(0, 5, 60),
    prompt_tokens=(1, 3, 10, 40, -3),
    max_tokens=(1, 2, 5, 20, 60, 200),
    arrival=0.2,
    reset=0.005,
)
PRESSURE = Kind(
    max_num_seqs=(3, 8, 16),
    spare_blocks=(0, 0, 1, 5),
    prompt_tokens=(1, 10, 40),
    max_tokens=(20, 60, 200),
    arrival=0.7,
    reset=0.005,
    text=("abcdefghij", "klm"),
)
RESETS = replace(PRESSURE, reset=0.03)
#: For errors to be thrown in: few requests, most of which fork, and that give way to each other.
FAULTS = replace(
    PRESSURE, num_requests=5, max_num_seqs=(3, 8), max_tokens=(60, 200), arrival=0.7, reset=0.03, cancel=0.03
)
#: Whatever there is: tiny and huge blocks, threads that end in one step, moves, priorities, stop strings.
ANYTHING = Kind(
    max_num_seqs=(2, 3, 8, 16),
    spare_blocks=(0, 1, 5, 60),
    prompt_tokens=(1, 3, 10, 40, -3),
    max_tokens=(5, 20, 60, 200, 200),
    arrival=0.5,
    reset=0.01,
    block_sizes=(1, 2, 4, 8, 16, 64, 256),
    move=0.1,
    has_all=True,
)
#: Threads that are cut as votes are settled, among all that else may happen to them.
VOTES = replace(ANYTHING, only_votes=True)
#: Threads that their clients cancel, among all that else may happen to them.
CANCELS = replace(ANYTHING, cancel=0.2)
#: KV that is offloaded, while all else happens but a reset, which vLLM refuses while KV is loaded.
OFFLOADED = replace(
    PRESSURE, reset=0.0, cancel=0.05, move=0.1, transfer_steps=(1, 2, 6), prompt_tokens=(10, 40, 40)
)
#: What ``main`` drives.
DRIVEN = ("mixed", "pressure", "resets", "anything", "votes", "cancels", "offloaded")
KINDS = {
    "mixed": MIXED,
    "pressure": PRESSURE,
    "resets": RESETS,
    "faults": FAULTS,
    "anything": ANYTHING,
    "votes": VOTES,
    "cancels": CANCELS,
    "offloaded": OFFLOADED,
}

ABORT = 0.02
#: Far more than any run takes, and than any wait within one.
MAX_STEPS, MAX_IDLE_STEPS = 3000, 200


@dataclass(frozen=True)
class Setup:
    """The scheduler of a run."""

    is_async: bool
    block_size: int
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_depth: int
    by_priority: bool
    limits: dict[str, int]
    #: Of ``Settings``.
    options: dict[str, Any]
    #: Drafts of a request in a step, the chance that one is right, and whether drafting takes KV slots.
    max_drafts: int = 0
    share_right: float = 1.0
    drafts_in_kv: bool = False
    #: Of a pipeline: with several, a step is scheduled while the one before runs in the next stage.
    num_stages: int = 1
    #: That a copy of the KV connector takes; 0: there is none.
    transfer_steps: int = 0

    @classmethod
    def draw(cls, name: str, chance: random.Random, kind: Kind, dialect: Dialect) -> Setup:
        """Any, but such that the scheduler starts."""
        drafting = random.Random(f"{name} drafting")
        max_drafts = drafting.choice([0, 0, 1, 3, 6])
        block_size, max_model_len = chance.choice(kind.block_sizes), chance.choice([96, 160, 256])
        max_num_seqs = chance.choice(kind.max_num_seqs)
        blocks_of_longest = -(-max_model_len // block_size)
        least = 2 * blocks_of_longest + 3 if dialect.join.moves_kv else blocks_of_longest + 2
        pace = [{}, {}, {"max_threads_running": chance.choice([1, 2])}, {"thread_policy": RESTLESS}]
        pace.append({"slo_itl_ms": chance.choice([0.01, 5.0])})
        options = {
            "join_ahead_tokens": chance.choice([0, 8, 128]),
            "admission": chance.choice(["family", "greedy"]),
            "prune_policy": FICKLE,
            **chance.choice(pace),
            **({"draft_from": drafting.choice(["drafter", "family"])} if max_drafts else {}),
        }
        limits = {"max_tokens_per_thread": [1, 3, 10], "max_total_tokens": [1, 5, 40]}
        return cls(
            is_async=chance.random() < 0.5,
            block_size=block_size,
            num_blocks=least + chance.choice(kind.spare_blocks),
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=chance.choice([max(16, max_num_seqs), 64, 2048]),
            max_depth=chance.choice([dialect.max_depth, 1, 2, 3]),
            by_priority=kind.has_all and chance.random() < 0.3,
            limits={name: chance.choice(some) for name, some in limits.items() if chance.random() < 0.1},
            options=options,
            max_drafts=max_drafts,
            share_right=drafting.choice([0.5, 0.9, 1.0]),
            drafts_in_kv=drafting.random() < 0.5,
            transfer_steps=0
            if dialect.join.moves_kv
            else random.Random(f"{name} offloading").choice(kind.transfer_steps or (0,)),
        )

    def calm(self) -> Setup:
        """The same with room for all at once, so that nothing has to wait or to give way."""
        calm = {
            "max_drafts": 0,
            "by_priority": False,
            "is_async": False,
            "num_blocks": 4000,
            "max_num_seqs": 200,
            "max_num_batched_tokens": 8192,
            "transfer_steps": 0,
        }
        options = {"join_ahead_tokens": 0, "admission": "greedy"}
        return replace(self, **calm, options=options)

    def in_stages(self, mode: str) -> Setup:
        """The same on two stages of a pipeline, without drafts; ``mode``: sync or async."""
        options = {name: value for name, value in self.options.items() if name != "draft_from"}
        return replace(self, num_stages=2, is_async=mode == "async", max_drafts=0, options=options)

    def make(self, dialect: Dialect, model: Path) -> tuple[ForkJoinScheduler, Any]:
        """The scheduler, and what hashes the blocks of its requests."""
        dialect = dialect.model_copy(
            update={"max_depth": self.max_depth, "min_room": 1, "min_left": 0, "reserve": 0}
        )
        settings = Settings.of(dialect, self.limits, **self.options)
        args = EngineArgs(
            model=str(model),
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            enable_chunked_prefill=True,
            enforce_eager=self.num_stages == 1,
            scheduling_policy="priority" if self.by_priority else "fcfs",
            additional_config={KEY: settings.model_dump(mode="json")},
            worker_cls=WORKER if dialect.join.moves_kv else "auto",
            speculative_config=speculation(self.max_drafts),
            kv_transfer_config=offloading(self.transfer_steps) if self.transfer_steps else None,
        )
        config = args.create_engine_config()
        # All behind vLLM's back, which has no such on a CPU, or not without workers.
        config.cache_config.block_size = self.block_size
        config.scheduler_config.async_scheduling = self.is_async
        config.parallel_config.pipeline_parallel_size = self.num_stages
        scheduler, hasher = self.scheduler_of(config)
        scheduler.num_lookahead_tokens = self.max_drafts if self.drafts_in_kv else 0
        # Of vLLM's runners only V2 has stages and async scheduling together.
        scheduler.use_v2_model_runner = self.num_stages > 1 and self.is_async
        return scheduler, hasher

    def scheduler_of(self, config: Any) -> tuple[ForkJoinScheduler, Any]:
        """The same, of vLLM's ``config``."""
        return without_model(ForkJoinScheduler, config, self.num_blocks)


@dataclass
class Seen:
    """What the front end has been told."""

    ended: Counter[str] = field(default_factory=Counter)
    #: The answers, and how they ended.
    answers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    finish_reasons: dict[str, FinishReason | None] = field(default_factory=dict)
    #: Of answers to requests that asked for it, a row a token.
    logprobs: dict[str, list[LogprobsRow]] = field(default_factory=lambda: defaultdict(list))
    #: Threads by their family and index.
    threads_started: Counter[tuple[str, int]] = field(default_factory=Counter)
    threads_ended: Counter[tuple[str, int]] = field(default_factory=Counter)
    #: Requests that ask for a vote, and how many of their threads were cut because it was settled.
    votes: set[str] = field(default_factory=set)
    threads_cut: int = 0
    #: Families of which a client has cancelled a thread, and which so come to something else.
    cancelled: set[str] = field(default_factory=set)
    #: Families that forked, or wanted to.
    families: set[str] = field(default_factory=set)
    families_ended: Counter[str] = field(default_factory=Counter)
    #: Requests that a limit or a cut had a say in: what comes of them may depend on how steps fall.
    limited: set[str] = field(default_factory=set)
    #: Answers that the front end has ended at a stop string: what comes behind it drops.
    stopped: set[str] = field(default_factory=set)
    #: Where fork/join code failed, by the id of the request that it ended.
    failed: dict[str, str] = field(default_factory=dict)

    def note(self, output: EngineCoreOutput) -> None:
        """Take in ``output``. Raises AssertionError if it comes behind the end of its request."""
        if told := wire.unpack(output):
            for event in told.events:
                self._note_event(told.request_id, event)
            return
        if "#" in output.request_id:
            return  # of a thread that was cancelled in the step that ran it: the front end drops it
        if output.request_id in self.stopped:
            return
        assert not self.ended[output.request_id], f"an output behind the end: {output}"
        self.ended[output.request_id] += output.finish_reason is not None
        self.answers[output.request_id] += output.new_token_ids
        if output.new_logprobs is not None:
            rows = rows_in(output.new_logprobs)
            assert [ids[0] for ids, *_ in rows] == output.new_token_ids, "rows of logprobs of other tokens"
            self.logprobs[output.request_id] += rows
        self.finish_reasons[output.request_id] = output.finish_reason
        if output.finish_reason is FinishReason.LENGTH:
            self.limited.add(output.request_id)

    def _note_event(self, family: str, event: Event) -> None:
        if not isinstance(event, Load | Admission | InternalError):
            self.families.add(family)
        match event:
            case Forked():
                self.threads_started.update((family, thread.index) for thread in event.threads)
            case ThreadEnded():
                self._note_end(family, event)
            case FamilyEnded():
                self.families_ended[family] += 1
            case Limited() | Refused(reason="too_many_forks"):
                self.limited.add(family)
            case InternalError():
                assert family not in self.failed, "a family fails once"
                self.failed[family] = event.where

    def _note_end(self, family: str, event: ThreadEnded) -> None:
        self.threads_ended[family, event.index] += 1
        if event.reason == "client_cancelled":
            self.cancelled.add(family)
        # where the parent goes on beside it, its stop ends the answer wherever that has come to
        if event.reason in ("cut", "not_started", "pruned") and family in self.votes:
            self.threads_cut += 1
        elif event.reason in ("length", "cut", "request_stop"):
            self.limited.add(family)


class Drive:
    """One run: a scheduler, its requests, and whoever writes for them."""

    setups: ClassVar[type[Setup]] = Setup
    models: ClassVar[type[StandIn]] = StandIn

    def __init__(
        self,
        name: str,
        kind: Kind,
        dialect: Dialect,
        model: Path,
        *,
        is_calm: bool = False,
        in_stages: str = "",
    ) -> None:
        self._name = name
        self._chance = random.Random(name)
        self._clients = random.Random(f"{name} clients")
        self._kind = kind
        self._is_calm = is_calm
        self._dialect_votes = dialect.join.threads_are_answers
        self.setup = self.setups.draw(name, self._chance, kind, dialect)
        if is_calm:
            self.setup = self.setup.calm()
        if in_stages:
            self.setup = self.setup.in_stages(in_stages)
        self._scheduler, self._hasher = self.setup.make(dialect, model)
        self._tokenizer = EngineTokenizer.from_model_config(self._scheduler.vllm_config.model_config)
        phrases = [*PHRASES[dialect.name], *kind.text]
        self._copies = Copies(self._scheduler, self.setup.max_drafts, self.setup.share_right, name)
        self._model = self.models(self._scheduler, self._tokenizer, phrases, name, self._copies)
        #: Steps scheduled whose end the scheduler has not been told.
        self._in_flight: deque[tuple[Any, Any]] = deque()
        self._added: dict[str, Request] = {}
        self._aborted: set[str] = set()
        #: Requests that the front end has ended, and the engine has not heard of yet.
        self._stopping: list[str] = []
        self._moves = Moves(self._scheduler, self._chance)
        self.seen = Seen()

    @classmethod
    def named(cls, dialect: str, kind: str, seed: int, model: Path, *, in_stages: str = "") -> Drive:
        """The run of that name; ``in_stages``: on a pipeline of two, sync or async."""
        name, spoken = f"{dialect} {kind} {seed}", dialect_for(dialect)
        return cls(name, KINDS[kind], spoken, model, in_stages=in_stages)

    @classmethod
    def calm(cls, dialect: str, kind: str, seed: int, model: Path) -> Drive:
        """The same requests as in the run of that name, with room for all, and left alone."""
        return cls(f"{dialect} {kind} {seed}", KINDS[kind], dialect_for(dialect), model, is_calm=True)

    def check_same(self, calm: Drive) -> tuple[int, int, int]:
        """Raise AssertionError unless the requests came to what they came to in ``calm``.

        But for those that were aborted, failed, or met a limit: those may end earlier, or otherwise.
        What both runs sampled at the same place they must have sampled from the same context; of a
        request that failed, too. Returns how many answers, contexts and rows of logprobs were compared.
        """
        seen, wanted = self.seen, calm.seen
        excepted = self._aborted | seen.failed.keys() | seen.limited | wanted.limited | seen.cancelled
        compared = [i for i in self._added if i not in excepted]
        for i in compared:
            assert seen.logprobs[i] == wanted.logprobs[i], f"{i} has other logprobs than undisturbed"
            if i in seen.stopped and i in wanted.stopped:
                assert seen.answers[i] == wanted.answers[i], f"{i} is stopped elsewhere than undisturbed"
                continue
            assert seen.answers[i] == wanted.answers[i], f"{i} has another answer than undisturbed"
            assert seen.finish_reasons[i] == wanted.finish_reasons[i], f"{i} ends otherwise than undisturbed"
            num_threads = [sum(f == i for f, _ in s.threads_started) for s in (seen, wanted)]
            assert num_threads[0] == num_threads[1], f"{i} has (threads, undisturbed) {num_threads}"
        ours, theirs = self._model.seen, calm._model.seen
        both = [at for at in ours if at in theirs and at[0][0] in compared]
        wrong = [at for at in both if ours[at] != theirs[at]]
        assert not wrong, f"sampled from another context than undisturbed: {min(wrong, key=str)}"
        return len(compared), len(both), sum(len(seen.logprobs[i]) for i in compared)

    @property
    def num_preemptions(self) -> int:
        """How often requests lost their blocks, those of threads not counted."""
        return sum(request.num_preemptions for request in self._added.values())

    @property
    def num_accepted(self) -> int:
        """Drafts that were right, and were taken."""
        return self._copies.num_accepted

    @property
    def num_loads(self) -> int:
        """How often KV was loaded by the connector."""
        return 0 if self._model.offloading is None else self._model.offloading.num_loads

    @property
    def moves_made(self) -> Counter[str]:
        """How often each was made."""
        return self._moves.made

    def run(self) -> None:
        """Run to the end of all requests. Raises AssertionError if anything is not as it must be."""
        at_rest = self._state()
        idle_steps = 0
        for _ in range(MAX_STEPS):
            self._disturb(is_idle=idle_steps > 0)
            idle_steps = 0 if self._step() else idle_steps + 1
            if not self._is_calm:
                self._check()
            if len(self._added) == self._kind.num_requests:
                if not self._scheduler.requests:
                    break
                assert idle_steps < MAX_IDLE_STEPS, f"it hangs: {self._state()}, {self._requests()}"
        else:
            raise AssertionError(f"not finished after {MAX_STEPS} steps: {self._state()}")
        # One more step tells of the last requests that ended, and some more end what a connector still copies.
        self._moves.stop()
        self._schedule()
        while self._scheduler.has_requests():
            self._step()
        while self._in_flight:
            self._update()
        _assert_same(self._state(), at_rest)
        self._check_ends()

    # ---- what happens ----------------------------------------------------------------------

    def _disturb(self, *, is_idle: bool) -> None:
        """What clients, operators and other families do between two steps, if anything."""
        if len(self._added) < self._kind.num_requests and self._happens(self._kind.arrival):
            self._add()
        for request_id in self._stopping:
            self._scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self._stopping.clear()
        if self._is_calm:
            return
        unfinished = [i for i in self._added if i in self._scheduler.requests]
        if unfinished and self._happens(ABORT):
            request_id = self._chance.choice(unfinished)
            self._aborted.add(request_id)
            self._scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self._cancel()
        if self._happens(self._kind.reset):
            self._moves.stop()  # vLLM resets what it has paused, and needs every block for that
            self._scheduler.reset_prefix_cache(reset_running_requests=True)
        if self._kind.move:
            self._moves.move(self._kind.move, is_idle=is_idle)
        self._check()

    def _cancel(self) -> None:
        """Let a client cancel a thread, which may have ended."""
        threads = [(live, t) for live in self._scheduler._core.live.values() for t in live.family.threads]
        if threads and self._clients.random() < self._kind.cancel:
            live, thread = self._clients.choice(threads)
            heard = ask(live, thread.index)
            assert heard == (CANCELLING if thread.end is None else thread.end.value), f"{thread}: {heard}"

    def _add(self) -> None:
        request_id = f"r{len(self._added)}"
        chance = random.Random(f"{self._name} {request_id}")
        length = chance.choice(self._kind.prompt_tokens)
        num_tokens = length if length > 0 else self.setup.max_model_len + length
        prompt = self._tokenizer.encode("".join(chance.choices("pq", k=num_tokens)))
        request = Request(
            request_id=request_id,
            prompt_token_ids=prompt,
            sampling_params=self._params(request_id, chance, room=self.setup.max_model_len - len(prompt)),
            pooling_params=None,
            block_hasher=self._hasher,
            arrival_time=len(self._added),
            priority=chance.choice([0, 0, 1, 2]) if self.setup.by_priority else 0,
        )
        self._added[request_id] = request
        self._scheduler.add_request(request)

    def _params(self, request_id: str, chance: random.Random, room: int) -> SamplingParams:
        max_tokens = min(chance.choice(self._kind.max_tokens), room)
        options = _options(chance, only_votes=self._kind.only_votes)
        if self._dialect_votes and not {"branches", "best_of", "enabled"} & options.keys():
            self.seen.votes.add(request_id)
        if "best_of" in options:
            self.seen.votes.add(request_id)
            if self._is_calm:
                early = ("confidence", "prune")
                options = {k: v for k, v in options.items() if k not in early} | {"wait_for_all": True}
            elif options.get("confidence", 1) < 1 or "prune" in options:
                self.seen.limited.add(request_id)  # it may be wrong, as it says
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            min_tokens=min(chance.choice([0, 0, 0, 0, 1, 5]), max_tokens),
            ignore_eos=chance.random() < 0.1,
            stop_token_ids=self._tokenizer.encode("x") if chance.random() < 0.2 else None,
            stop=STOP if self._kind.has_all and chance.random() < 0.1 else None,
            extra_args={KEY: options} if options else None,
            logprobs=chance.choice([0, 2]) if chance.random() < 0.3 else None,
        )
        params.update_from_generation_config({}, eos_token_id=self._tokenizer.token_id(END))
        return params

    def _happens(self, probability: float) -> bool:
        return self._chance.random() < probability

    # ---- steps -----------------------------------------------------------------------------

    def _step(self) -> bool:
        """Schedule a step and end one: the same, or under async scheduling and in stages the one before.

        Returns whether the new one runs anything.
        """
        has_run = self._schedule()
        may_fly = self.setup.num_stages - 1 + self.setup.is_async
        if len(self._in_flight) > may_fly or not has_run:
            self._update()
        return has_run

    def _schedule(self) -> bool:
        output = self._scheduler.schedule()
        sampled = self._model.execute(output)
        self._in_flight.append((output, sampled))
        return bool(sampled.req_ids)

    def _update(self) -> None:
        output, of_model = self._in_flight.popleft()
        told = self._scheduler.update_from_output(output, of_model)
        if self.setup.max_drafts and not self.setup.is_async:
            self._scheduler.update_draft_token_ids(self._copies.drafted(of_model.req_ids))
        for outputs in told.values():
            for output in outputs.outputs:
                self.seen.note(output)
                self._stop_at_string(output.request_id)

    def _stop_at_string(self, request_id: str) -> None:
        """End a request whose answer holds its stop string, as the front end does: the engine hears of it later.

        What came in one output with the end of the request is searched, too.
        """
        request = self._added.get(request_id)
        if request is None or request_id in self.seen.stopped or not request.sampling_params.stop:
            return
        answer = self.seen.answers[request_id]
        text = ""
        for num_tokens in range(1, len(answer) + 1):
            text += self._tokenizer.decode(answer[num_tokens - 1 : num_tokens])
            if STOP in text:
                del answer[num_tokens:]
                del self.seen.logprobs[request_id][num_tokens:]
                self.seen.stopped.add(request_id)
                if request_id in self._scheduler.requests:
                    self._stopping.append(request_id)
                return

    # ---- what must hold --------------------------------------------------------------------

    def _check(self) -> None:
        check_invariants(self._scheduler)
        check_accounts(self._scheduler)

    def _state(self) -> dict[str, int]:
        """What must be the same before and after."""
        scheduler = self._scheduler
        of_families: Sequence[Sequence[Any]] = (
            scheduler._gate.admitted,
            scheduler._ahead.waiting,
            scheduler._eviction.evicted,
            scheduler._restoring.lost,
            scheduler._leaving.aborted_pending_flush,
        )
        return snapshot(scheduler) | {
            "ahead": scheduler._ahead.num_tokens,
            "others": sum(map(len, of_families)),
        }

    def _requests(self) -> list[tuple[str, str, int]]:
        requests = self._scheduler.requests.values()
        return [(r.request_id, r.status.name, r.num_computed_tokens) for r in requests]

    def _check_ends(self) -> None:
        """Each request ended once, but for the aborted; and each family and thread, the aborted, too."""
        seen = self.seen
        left = [i for i in self._added if not seen.ended[i] and i not in self._aborted | seen.stopped]
        assert not left, f"not told of their ends: {left}"
        strangers = set(seen.ended) - set(self._added)
        assert not strangers, f"no request of ours: {strangers}"
        _assert_same(seen.threads_ended, seen.threads_started)
        _assert_same(seen.families_ended, Counter(seen.families))
        for request_id in self._added:
            self._check_logprobs(request_id)

    def _check_logprobs(self, request_id: str) -> None:
        """Each token has its row, if that was asked for: of what the request sampled, or marked as injected."""
        params, found = self._added[request_id].sampling_params, self.seen.logprobs[request_id]
        num_wanted = 0 if params.num_logprobs is None else len(self.seen.answers[request_id])
        assert len(found) == num_wanted, f"{request_id}: {len(found)} rows of logprobs, not {num_wanted}"
        sampled = [row for row in found if row[1] != (INJECTED_LOGPROB,)]
        strange = set(sampled) - self._model.rows_of(request_id)
        assert not strange, f"{request_id}: logprobs of what it has not sampled: {min(strange)}"
        is_family = request_id in self.seen.families
        assert is_family or found == sampled, f"{request_id}: injected tokens in an answer without a fork"


@dataclass
class Tally:
    """What runs have come to, added up."""

    runs: int = 0
    requests: int = 0
    #: Requests that forked, and their threads.
    families: int = 0
    threads: int = 0
    #: Threads that were cut because a vote was settled.
    threads_cut: int = 0
    #: Answers that were compared with the undisturbed ones, and tokens of these whose context was.
    answers_compared: int = 0
    contexts_compared: int = 0
    #: Tokens of these whose log-probabilities were.
    logprobs_compared: int = 0
    preemptions: int = 0
    drafts_accepted: int = 0
    moves: Counter[str] = field(default_factory=Counter)
    #: The runs that were not as they must be, and why.
    faults: dict[str, str] = field(default_factory=dict)

    def take_in(self, other: Tally) -> None:
        """Add ``other``."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, int):
                setattr(self, name, mine + value)
            else:
                mine.update(value)


def compared(
    dialect: str, kind: str, seed: int, model: Path, *, in_stages: str = ""
) -> tuple[Drive, Drive, tuple[int, int, int]]:
    """The run of that name, the undisturbed one, and what was compared of them; an error says which run it was."""
    drive = Drive.named(dialect, kind, seed, model, in_stages=in_stages)
    calm = Drive.calm(dialect, kind, seed, model)
    try:
        drive.run()
        calm.run()
        return drive, calm, drive.check_same(calm)
    except Exception as error:
        error.add_note(f'Drive.named("{dialect}", "{kind}", {seed}, …), {drive.setup}')
        raise


def tally_of(dialect: str, kind: str, seed: int, model: Path) -> Tally:
    """Make the run of that name, and the undisturbed one beside it."""
    tally = Tally(runs=1)
    try:
        drive, calm = Drive.named(dialect, kind, seed, model), Drive.calm(dialect, kind, seed, model)
        drive.run()
        calm.run()
        tally.answers_compared, tally.contexts_compared, tally.logprobs_compared = drive.check_same(calm)
        tally.preemptions = drive.num_preemptions
        tally.drafts_accepted = drive.num_accepted
    except Exception as error:
        tally.faults[f"{dialect} {kind} {seed}"] = f"{type(error).__name__}: {error}"[:300]
    tally.requests = len(drive.seen.ended)
    tally.families = len({family for family, _ in drive.seen.threads_started})
    tally.threads = len(drive.seen.threads_started)
    tally.threads_cut = drive.seen.threads_cut
    tally.moves = drive.moves_made
    return tally


def _worker(number: int, num_workers: int, seed: int, num_families: int) -> Tally:
    """Make every so manieth run from ``seed`` on, until they have come to so many families."""
    from forkjoin_scheduler.vllm_seam.starts import thread_pacer

    ticks = count()
    # each look at the clock takes a millisecond: a run is the same on every machine
    setattr(thread_pacer, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 1e3))  # noqa: B010
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        names = builtin_names()
        models = {n: model_for(n, lambda name: Path(tempfile.mkdtemp(name, dir=folder))) for n in names}
        for at in count(number, num_workers):
            if tally.families >= num_families:
                return tally
            round_, place = divmod(at, len(names) * len(DRIVEN))
            dialect, kind = names[place % len(names)], DRIVEN[place // len(names)]
            tally.take_in(tally_of(dialect, kind, seed + round_, models[dialect]))
            if (at // num_workers) % 50 == 0:
                print(f"process {number}: {tally}", flush=True)
    return tally


def main() -> None:
    """Drive the scheduler until so many families have run, print what they came to; 1 if any was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.random_drive", description=main.__doc__)
    parser.add_argument("--families", type=int, default=1000, help="requests that fork")
    parser.add_argument(
        "--seed", type=int, default=1000, help="of the first runs: runs are named by their seeds"
    )
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    began = time.monotonic()
    each = -(-args.families // args.processes)
    tally = Tally()
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        workers = [pool.submit(_worker, i, args.processes, args.seed, each) for i in range(args.processes)]
        for worker in workers:
            tally.take_in(worker.result())
    print(json.dumps(vars(tally) | {"seconds": round(time.monotonic() - began)}, indent=2))
    sys.exit(bool(tally.faults))


def _options(chance: random.Random, *, only_votes: bool) -> dict[str, Any]:
    """The ``forkjoin`` field of a request."""
    branches = [{"text": "A"}, {"title": "b"}]
    asked: list[dict[str, Any]] = [
        {"best_of": chance.choice([1, 2, 3, 5, 9]), "vote": chance.choice([r"\A.*", r"\A.", "x"])},
        {"branches": branches[: chance.choice([1, 2])]},
        {"branches": branches, "closing": "so"},
        {"enabled": False},
    ]
    if asked[0]["vote"] == "x" and asked[0]["best_of"] > 1:
        asked[0]["branches"] = branches
    if chance.random() < 0.5:
        asked[0]["confidence"] = chance.choice([0.6, 1.0, 1.0])
    if chance.random() < 0.2:
        asked[0]["prune"] = chance.choice(["own", "own", "agreement", "memory", "confidence"])
    weights = [1, 0, 0, 0, 0] if only_votes else [10, 5, 5, 5, 75]
    options = dict(chance.choices([*asked, {}], weights=weights)[0])
    if chance.random() < 0.3:
        options["max_tokens_per_thread"] = chance.choice([1, 2, 10])
    if chance.random() < 0.3:
        options["max_total_tokens"] = chance.choice([1, 2, 5, 40])
    if chance.random() < 0.15:
        options["max_forks"] = chance.choice([0, 1, 2])
    if chance.random() < 0.3:
        options["include_threads"] = True
    return options


def _assert_same(found: dict[Any, int], wanted: dict[Any, int]) -> None:
    """Raise AssertionError naming what differs."""
    keys = {key for key in {**found, **wanted} if found.get(key, 0) != wanted.get(key, 0)}
    different = {key: f"{found.get(key, 0)}, not {wanted.get(key, 0)}" for key in sorted(keys)}
    assert not different, f"{different}"


if __name__ == "__main__":
    main()
