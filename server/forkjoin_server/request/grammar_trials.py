"""What compiling a grammar costs, found by trial before the engine compiles it.

The engine compiles grammars in threads, which nothing can stop: one of 600 characters takes a minute of CPU
time, one of some KB hundreds of MiB. So a grammar is compiled beside the server first, for a small part of
the vocabulary, with a budget of CPU time. What is not done by then is refused. docs/reliability.md says how
long the engine takes for what is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import random
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from forkjoin_scheduler.errors import Overloaded
from forkjoin_scheduler.policy.fair_queue import FairQueue, Ticket

LOG = logging.getLogger("vllm.forkjoin.server")
#: Seconds of CPU that the grammars of a request may take on trial.
MAX_CPU_S = 2
#: Tokens of more than a byte that take part. With more of them a trial takes longer, and is no better.
NUM_SAMPLED = 500
#: Of memory that the grammars of a request are expected to take for the whole vocabulary.
MAX_MIB = 512
_MAX_KNOWN = 1000
#: Seconds of CPU that the grammars of a tenant may be expected to take that wait, for one more to wait.
MAX_WAITING_S = 10


@dataclass(frozen=True)
class Grammar:
    """``kind``: of the functions ``compile_…`` of xgrammar's compiler, which takes it with ``options``."""

    kind: str
    grammar: str
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """``error``: what the library says against it; ``is_over``: it was ended, or crashed."""

    error: str
    is_over: bool
    cpu_s: float
    #: That it is expected to take in the engine.
    num_bytes: float

    @property
    def cost_s(self) -> float:
        """What it took; what is ended takes up to twice the budget."""
        return 2 * MAX_CPU_S if self.is_over else self.cpu_s


@dataclass(frozen=True, eq=False)
class Asked:
    """A grammar that waits, and who waits for it."""

    grammar: Grammar
    digest: bytes
    verdict: Future[Verdict]


class Trials:
    """Tries grammars one at a time, in their tenants' turns, and remembers what came of them."""

    def __init__(self, vocabulary: Callable[[], Sequence[bytes]]) -> None:
        self._vocabulary = vocabulary
        #: Tokens of the vocabulary for each that takes part.
        self._scale = 1.0
        self._process: subprocess.Popen[bytes] | None = None
        self._one = ThreadPoolExecutor(1, "grammar-trials")
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        #: Of the queue, which two threads read and write.
        self._lock = threading.Lock()
        self._waiting: FairQueue[Asked] = FairQueue()
        self._num_waiting: defaultdict[str, int] = defaultdict(int)
        #: By tenant: what one of its grammars costs, the latest counting most.
        self._expected_s: defaultdict[str, float] = defaultdict(float)
        self._numbers = itertools.count()

    def of(self, grammar: Grammar, tenant: str = "") -> Future[Verdict]:
        """What becomes of ``grammar``. Raises Overloaded if too much of ``tenant`` waits for its trial.

        The future raises it where that turns out later.
        """
        digest = hashlib.sha256(repr(grammar).encode("utf-8", "surrogatepass")).digest()
        future: Future[Verdict] = Future()
        if (known := self._known.get(digest)) is not None:
            self._known.move_to_end(digest)
            future.set_result(known)
            return future
        with self._lock:
            if (error := self._block_error(tenant, self._num_waiting[tenant])) is not None:
                raise error
            self._num_waiting[tenant] += 1
            self._waiting.add(Ticket(0, next(self._numbers), tenant, Asked(grammar, digest, future)))
        self._one.submit(self._try_next)
        return future

    def close(self) -> None:
        """End the process, and try no more."""
        self._one.shutdown(cancel_futures=True)
        for ticket in self._waiting:
            ticket.item.verdict.cancel()
        self._end()

    def _block_error(self, tenant: str, num_before: int) -> Overloaded | None:
        """Why a grammar may not wait after ``num_before`` of ``tenant``; None if it may."""
        waits_s = num_before * self._expected_s[tenant]
        if waits_s <= MAX_WAITING_S:
            return None
        return Overloaded(
            f"the grammar: expected at most {MAX_WAITING_S} s of CPU time for grammars of "
            f"{'this API key' if tenant else 'clients'} that wait to be compiled on trial, got about "
            f"{waits_s:.0f}: ask again later, or with a grammar that was compiled before",
            reason="queued_grammars",
            status=429 if tenant else 503,
            retry_after_s=math.ceil(waits_s),
        )

    def _try_next(self) -> None:
        """Try the grammar whose turn it is. Nobody waits any more for one whose client hung up."""
        with self._lock:
            if not self._waiting:  # what was to be tried has been refused
                return
            ticket = self._waiting.first()
            self._leave(ticket)
        asked = ticket.item
        if not asked.verdict.set_running_or_notify_cancel():
            return
        try:
            verdict = self._known.get(asked.digest)  # of who asked for it at the same time
            if verdict is None:
                verdict = self._try(asked.grammar, asked.digest)
                self._charge(ticket.tenant, verdict.cost_s)
        except Exception as error:  # nobody may wait forever
            asked.verdict.set_exception(error)
        else:
            asked.verdict.set_result(verdict)

    def _leave(self, ticket: Ticket[Asked]) -> None:
        self._waiting.take(ticket, 0)
        self._num_waiting[ticket.tenant] -= 1

    def _charge(self, tenant: str, cost_s: float) -> None:
        """Note that ``tenant`` was given ``cost_s``, and refuse the latest of what is too much by that."""
        refused = []
        with self._lock:
            self._waiting.charge(tenant, cost_s)
            self._expected_s[tenant] += (cost_s - self._expected_s[tenant]) / 4
            waiting = [ticket for ticket in self._waiting if ticket.tenant == tenant]
            while waiting and (error := self._block_error(tenant, len(waiting) - 1)) is not None:
                refused.append((waiting[-1].item.verdict, error))
                self._leave(waiting.pop())
        for verdict, error in refused:
            if verdict.set_running_or_notify_cancel():
                verdict.set_exception(error)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _try(self, grammar: Grammar, digest: bytes) -> Verdict:
        job = {"kind": grammar.kind, "grammar": grammar.grammar, "options": dict(grammar.options)}
        try:
            process = self._running()
            _write(process, job | {"cpu_s": MAX_CPU_S})
            found = json.loads(_read(process))
            verdict = Verdict(**found | {"num_bytes": found["num_bytes"] * self._scale})
        except (OSError, ValueError):
            LOG.exception("Compiling a grammar on trial failed; that process is started again")
            self._end()
            return Verdict("", is_over=True, cpu_s=MAX_CPU_S, num_bytes=0)
        self._known[digest] = verdict
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return verdict

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            vocabulary = self._vocabulary()
            taken = sample(vocabulary)
            command = [sys.executable, "-m", "forkjoin_server.request.grammar_trial"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe)  # noqa: S603 - this program
            self._scale = max(len(vocabulary) / len(taken), 1)
            _write(self._process, [token.hex() for token in taken])
        return self._process


def block_reason(verdicts: Sequence[Verdict]) -> str | None:
    """Why the engine will not compile the grammars of a request, which cost too much; None if it will."""
    if any(verdict.is_over for verdict in verdicts) or sum(v.cpu_s for v in verdicts) > MAX_CPU_S:
        expected, got = f"what takes at most {MAX_CPU_S} s to compile on trial", "what takes longer"
    elif (mib := sum(v.num_bytes for v in verdicts) / 2**20) > MAX_MIB:
        expected, got = f"what takes at most {MAX_MIB} MiB when compiled", f"about {mib:.0f}"
    else:
        return None
    return (
        f"expected {expected}, got {got}: say it with fewer different lengths and repetitions, fewer fields, "
        "or fewer parts after each other that take the same characters"
    )


def sample(vocabulary: Sequence[bytes]) -> list[bytes]:
    """A vocabulary of all bytes, and of some tokens of ``vocabulary``, always the same."""
    longer = sorted({token for token in vocabulary if len(token) > 1})
    chosen = random.Random(0).sample(longer, min(NUM_SAMPLED, len(longer)))
    return [b"</s>", *(bytes([byte]) for byte in range(256)), *chosen]


def _write(process: subprocess.Popen[bytes], value: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(value).encode() + b"\n")
    process.stdin.flush()


def _read(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()
