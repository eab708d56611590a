"""Traffic of all kinds: what clients of a busy server do, and what others do to it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.fuzz import field as fuzzed
from tests.fuzz.source import Source
from tests.soak import questions
from tests.soak.client import (
    check_whole,
    encoded,
    raw,
    request_bytes,
    streamed,
    text_of_stream,
    whole,
)
from tests.soak.outcome import How, Outcome, Refused, Unfit
from tests.soak.questions import BATCH, CHAT, COMPLETIONS, KNOWN, MESSAGES, PROBLEMS, RESPONSES, WRONG, chat

#: A body that no server should read whole.
HUGE_BYTES = 96 * 2**20
#: Prompts that take more than all KV blocks together.
NUM_LONG, LONG_TOKENS = 8, 3500
#: More sizes of batches than a layer keeps the compiled products of (vLLM's ``create_onednn_mm``: 32).
SETTLING_TOKENS = range(100, 500, 10)
#: Nothing that the server accepts may take longer.
LIMIT_S = 300

SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "string", "enum": ["a", "b"]}},
    "required": ["x"],
    "additionalProperties": False,
}


@dataclass
class Soaked:
    """The server under load, and what was asked of it so far."""

    address: str
    http: httpx.AsyncClient
    rng: random.Random
    #: What the idle server answered to each of ``KNOWN``.
    known: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    num_sent: int = 0
    num_compared: int = 0

    async def one(self) -> None:
        """Send one request of a kind that chance picks, and note how it ended."""
        kind = self.rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
        self.num_sent += 1
        begin = time.monotonic()
        try:
            how = await asyncio.wait_for(KINDS[kind][1](self), LIMIT_S)
            note = ""
        except Refused as refused:
            how, note = How.REFUSED, str(refused)
        except (Unfit, httpx.HTTPError, OSError, TimeoutError, LookupError, ValueError) as error:
            how, note = How.FAILED, f"{type(error).__name__}: {error}"
        self.outcomes.append(Outcome(kind, how, time.monotonic() - begin, note))


async def learn(soaked: Soaked) -> None:
    """Ask each of ``KNOWN`` of the idle server, one after the other, when each KV block has been used.

    The memory of a block counts from its first use on.
    """
    for seed in range(NUM_LONG):
        await _prefill(soaked, LONG_TOKENS, seed)
    for body in KNOWN:
        answer = await whole(soaked.http, CHAT, body)
        soaked.known.append(answer["choices"][0]["message"]["content"])
    await _structured(soaked)  # the first grammar starts a process, with two descriptors, which stays


async def settle(soaked: Soaked) -> None:
    """Let the idle worker compute batches of certain sizes: of those computed last it keeps compiled products."""
    for length in SETTLING_TOKENS:
        await _prefill(soaked, length, seed=length)


async def _prefill(soaked: Soaked, num_tokens: int, seed: int) -> None:
    digits = "".join(random.Random(seed).choices("0123456789", k=num_tokens))
    await whole(soaked.http, COMPLETIONS, {"model": "abacus", "prompt": digits, "max_tokens": 1})


async def _known(soaked: Soaked) -> How:
    """One whose answer is known: it must be that."""
    index = soaked.rng.randrange(len(KNOWN))
    if soaked.rng.random() < 0.5:
        answer = await whole(soaked.http, CHAT, KNOWN[index])
        check_whole(CHAT, answer)
        text = answer["choices"][0]["message"]["content"]
    else:
        chunks = await streamed(soaked.http, CHAT, KNOWN[index])
        text = text_of_stream(chunks or [])
    soaked.num_compared += 1
    if text != soaked.known[index]:
        raise Unfit(
            f"another answer to question {index}: {text[:80]!r}… where {soaked.known[index][:80]!r}… was right"
        )
    return How.FINISHED


async def _sampled(soaked: Soaked) -> How:
    options = soaked.rng.choice(
        ({}, {"max_threads_per_fork": 2}, {"max_total_tokens": 200}, {"max_forks": 0})
    )
    body = chat(soaked.rng.choice(PROBLEMS), temperature=1, seed=soaked.rng.randrange(99), forkjoin=options)
    return await _either(soaked, CHAT, body | {"logprobs": soaked.rng.random() < 0.3})


async def _shown(soaked: Soaked) -> How:
    options: dict[str, Any] = {"include_threads": True}
    return await _either(soaked, CHAT, chat(soaked.rng.choice(PROBLEMS), forkjoin=options))


async def _asked(soaked: Soaked) -> How:
    branches = [{"title": f"{n}", "text": f"{n}:"} for n in range(soaked.rng.randint(1, 6))]
    early = ({}, {"confidence": 1.0}, {"prune": "confidence"}, {"prune": "agreement"}, {"prune": "memory"})
    vote = {"best_of": soaked.rng.randint(1, 8), "vote": "[0-9]+", **soaked.rng.choice(early)}
    options = soaked.rng.choice(({"branches": branches}, {"branches": branches, "closing": "\nso"}, vote))
    more = {"temperature": 1, "seed": soaked.rng.randrange(99)} if options is vote else {}
    return await _either(soaked, CHAT, chat("Count.", forkjoin=options, max_tokens=200, **more))


async def _choices(soaked: Soaked) -> How:
    return await _either(
        soaked, CHAT, chat(soaked.rng.choice(PROBLEMS), n=soaked.rng.randint(2, 3), temperature=0.7)
    )


async def _completion(soaked: Soaked) -> How:
    prompts = [f"<|user|>{p}<|assistant|>" for p in soaked.rng.sample(PROBLEMS, soaked.rng.randint(1, 3))]
    body = {"model": "abacus", "prompt": prompts, "temperature": 0, "max_tokens": 400}
    return await _either(soaked, COMPLETIONS, body)


async def _response(soaked: Soaked) -> How:
    body = {
        "model": "abacus",
        "input": soaked.rng.choice(PROBLEMS),
        "temperature": 0,
        "max_output_tokens": 900,
    }
    return await _either(soaked, RESPONSES, body)


async def _message(soaked: Soaked) -> How:
    body = chat(soaked.rng.choice(PROBLEMS), max_tokens=900)
    return await _either(soaked, MESSAGES, body)


async def _batch(soaked: Soaked) -> How:
    messages = [chat(p)["messages"] for p in soaked.rng.sample(PROBLEMS, 2)]
    check_whole(CHAT, await whole(soaked.http, BATCH, chat("", messages=messages, max_tokens=600)))
    return How.FINISHED


async def _structured(soaked: Soaked) -> How:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    return await _either(soaked, CHAT, chat("a or b?", response_format=schema, max_tokens=40))


async def _either(soaked: Soaked, path: str, body: dict[str, Any]) -> How:
    """Streamed or in one piece."""
    if soaked.rng.random() < 0.5:
        await streamed(soaked.http, path, body)
    else:
        check_whole(path, await whole(soaked.http, path, body))
    return How.FINISHED


async def _leaves(soaked: Soaked) -> How:
    """A client that hangs up in the middle of a stream, at any point of a fork."""
    path, body = soaked.rng.choice(
        ((CHAT, chat(questions.FIVE)), (RESPONSES, {"model": "abacus", "input": questions.THREE}))
    )
    left = await streamed(soaked.http, path, body, leaves_after=soaked.rng.randint(1, 120))
    return How.FINISHED if left is not None else How.CANCELLED


async def _gives_up(soaked: Soaked) -> How:
    """A client that hangs up before an answer in one piece has come."""
    try:
        await asyncio.wait_for(whole(soaked.http, CHAT, chat(questions.FIVE)), soaked.rng.uniform(0.05, 3))
    except TimeoutError:
        return How.CANCELLED
    return How.FINISHED


async def _reads_slowly(soaked: Soaked) -> How:
    body = encoded(chat(questions.FIVE, stream=True, forkjoin={"include_threads": True}))
    await _raw(soaked, request_bytes(CHAT, body), reads=soaked.rng.randint(5, 40), pause_s=0.1)
    return How.CANCELLED


async def _never_reads(soaked: Soaked) -> How:
    body = encoded(chat(questions.FIVE, stream=True))
    await _raw(soaked, request_bytes(CHAT, body), reads=0, pause_s=soaked.rng.uniform(1, 6))
    return How.CANCELLED


async def _aborts_upload(soaked: Soaked) -> How:
    body = encoded(chat(questions.TWO))
    sent = request_bytes(CHAT, body[: soaked.rng.randrange(len(body))], length=len(body) + 10)
    await _raw(soaked, sent, reads=0, pause_s=soaked.rng.uniform(0, 1))
    return How.CANCELLED


async def _raw(soaked: Soaked, sent: bytes, *, reads: int, pause_s: float) -> None:
    parts = urlsplit(soaked.address)
    assert parts.hostname is not None
    assert parts.port is not None
    await raw(parts.hostname, parts.port, sent, reads=reads, pause_s=pause_s, rng=soaked.rng)


async def _wrong(soaked: Soaked) -> How:
    path, body = soaked.rng.choice(WRONG)
    answer = await whole(soaked.http, path, body)
    raise Unfit(f"expected a refusal of {str(body)[:100]}, got {str(answer)[:100]}")


async def _fuzzed(soaked: Soaked) -> How:
    """Any ``forkjoin`` field beside a small question: refused or answered."""
    options = fuzzed.forkjoin(Source(soaked.rng.randbytes(32)))
    check_whole(CHAT, await whole(soaked.http, CHAT, chat("a=1*2", forkjoin=options, max_tokens=16)))
    return How.FINISHED


async def _huge(soaked: Soaked) -> How:
    """A body over the limit, of which the server says so before it is sent."""
    said = await _head_of_huge(soaked)
    if b" 413 " not in said.partition(b"\r\n")[0]:
        raise Unfit(f"expected a 413 of a body of {HUGE_BYTES} bytes, got {said[:100]!r}")
    raise Refused("status 413")


async def _head_of_huge(soaked: Soaked) -> bytes:
    parts = urlsplit(soaked.address)
    assert parts.hostname is not None
    assert parts.port is not None
    sent = request_bytes(CHAT, b'{"x": "', length=HUGE_BYTES)
    return await raw(parts.hostname, parts.port, sent, reads=1, pause_s=0, rng=soaked.rng)


#: How often each kind is sent, against the others.
KINDS: dict[str, tuple[int, Callable[[Soaked], Awaitable[How]]]] = {
    "known": (30, _known),
    "sampled": (8, _sampled),
    "threads shown": (6, _shown),
    "branches, best of": (6, _asked),
    "several choices": (4, _choices),
    "completions": (6, _completion),
    "responses": (6, _response),
    "messages": (4, _message),
    "batch": (3, _batch),
    "structured": (4, _structured),
    "leaves a stream": (8, _leaves),
    "gives up waiting": (6, _gives_up),
    "reads slowly": (3, _reads_slowly),
    "never reads": (3, _never_reads),
    "aborts an upload": (3, _aborts_upload),
    "wrong": (8, _wrong),
    "fuzzed field": (6, _fuzzed),
    "huge": (2, _huge),
}
