"""A family as tokens: from every context that a system may send, what is to be written next.

Contexts are the prompt, a thread's (its parent's context, then its header), and the joined one
after a fork. From each the continuation is what stands after it in the linear transcript, up to
the end of its branch: a system that stops at a trigger or an end tag takes the beginning of it, one
that decodes sequentially all of it. A context is known by the digest of its tokens, so no request
needs to say which it is. The prompt of several samples has one continuation for each: its request's seed is
the sample's number.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal, TypeVar

from forkjoin_bench.inputs.traces import Body, Family, Fork, Thread
from forkjoin_scheduler.dialects.tokenizer import Tokenizer

TRIGGER, THREAD_END, JOIN_TEXT = "</Outlines>", "</Thread>", "\n"
#: What the model itself writes first after a join.
BLOCK_END = "</Parallel>"

Kind = Literal["prompt", "thread", "join"]
Known = TypeVar("Known")


def header(number: str) -> str:
    """What stands before a thread in its own context."""
    return f"\n<Thread>\n{number}:"


def joined_header(number: str, *, first: bool) -> str:
    """What stands before it in the joined context."""
    return header(number) if first else header(number).removeprefix("\n")


def digest(token_ids: Sequence[int]) -> str:
    """What a context is known by."""
    return blake2b(array("I", token_ids).tobytes(), digest_size=8).hexdigest()


def prompt_digest(token_ids: Sequence[int], sample: int | None) -> str:
    """What a prompt is known by: its digest, and of several samples the sample's number."""
    return digest(token_ids) if sample is None else _of_sample(digest(token_ids), sample)


def find(known: Mapping[str, Known], context: str, seed: int | None) -> Known | None:
    """What is known of the context with this digest, in a request with ``seed``.

    Of several samples' prompt that is what is known of one sample; any other context has it for all seeds.
    """
    own = None if seed is None else known.get(_of_sample(context, seed))
    return known.get(context) if own is None else own


def _of_sample(prompt: str, sample: int) -> str:
    return f"{prompt}/{sample}"


@dataclass(frozen=True)
class Context:
    """A context to go on from.

    ``digest``: what it is known by; a prompt's is ``prompt_digest``. ``fork_len``: how much of it the branch
    had when it forked (0: it is a prompt). ``fork``: which fork of the family it belongs to, counted in the
    order in which they end.
    """

    family: str
    kind: Kind
    digest: str
    length: int
    fork_len: int
    fork: int
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class ForkFacts:
    """A fork: the tokens of the branch when it forks, and of each thread, its header included.

    And the digests of its contexts: the branch's first, the one from which it wrote the trigger, its
    threads', the joined one.
    """

    fork_len: int
    within: str
    forked_from: str
    thread_tokens: tuple[int, ...] = ()
    threads: tuple[str, ...] = ()
    joined: str = ""


@dataclass
class Compiled:
    """A family in tokens: ``text`` is the linear transcript after the prompt, up to the end of sequence."""

    family: Family
    prompt_ids: list[int]
    text: str
    token_ids: list[int]
    contexts: list[Context] = field(default_factory=list)
    forks: list[ForkFacts] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        """What its prompt is known by."""
        return prompt_digest(self.prompt_ids, self.family.sample)

    @property
    def num_critical(self) -> int:
        """Tokens on the longest path: of each fork, those of its longest thread; within a token a thread."""
        return self._critical(self.prompt, len(self.token_ids))

    def _critical(self, branch: str, num_tokens: int) -> int:
        for fork in self.forks:
            if fork.within == branch:
                longest = max(map(self._critical, fork.threads, fork.thread_tokens))
                num_tokens += longest - sum(fork.thread_tokens)
        return num_tokens

    def ideal_blocks(self, block_size: int) -> int:
        """KV blocks that are needed at once: the prefix and the sum of the threads, or the whole at its end.

        In whole blocks: threads share the full ones of the prefix, each has a copy of its partial
        tail. Where threads fork themselves, as if all were at their longest at once.
        """
        whole = -(-(len(self.prompt_ids) + len(self.token_ids)) // block_size)
        of_prompt = [fork for fork in self.forks if fork.within == self.prompt]
        return max([whole, *(self._blocks_at(fork, block_size) for fork in of_prompt)])

    def _blocks_at(self, fork: ForkFacts, block_size: int) -> int:
        """Blocks that a fork needs, those of what is before it included."""
        shared, tail = divmod(fork.fork_len, block_size)
        needed = shared
        for num_tokens, thread in zip(fork.thread_tokens, fork.threads, strict=True):
            inner = (self._blocks_at(f, block_size) - shared for f in self.forks if f.within == thread)
            needed += max([-(-(tail + num_tokens) // block_size), *inner])
        return needed


class Compiler:
    """Compiles families for a tokenizer, which must have ThreadWeaver's tags as tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode

    def compile(self, family: Family) -> Compiled:
        """Raises ValueError if the tokenizer does not give a transcript's tokens back from its text."""
        prompt_ids = self._encode(family.prompt)
        text = _linear(family.body)
        compiled = Compiled(family, prompt_ids, text, [])
        compiled.token_ids = self._branch(compiled, prompt_ids, family.body, "", "prompt", -1)
        if self._encode(family.prompt + text) != prompt_ids + compiled.token_ids:
            raise ValueError(f"{family.name}: its text has other tokens than its parts: choose other words")
        return compiled

    def _branch(
        self, out: Compiled, start: list[int], body: Body, end: str, kind: Kind, fork: int
    ) -> list[int]:
        """Note the contexts of a branch that begins after ``start``; the tokens of it."""
        written: list[int] = []
        #: Where in ``written`` it goes on after each of its forks.
        joins: list[tuple[int, int]] = []
        known_by = out.prompt if kind == "prompt" else digest(start)
        within = forked_from = known_by
        for part in body:
            if isinstance(part, str):
                written += self._encode(part)
                continue
            written += self._encode(part.outline)
            own_fork = len(out.forks)
            out.forks.append(ForkFacts(len(start) + len(written), within, forked_from))
            written += self._threads(out, start + written, part, own_fork)
            forked_from = digest(start + written)
            out.forks[own_fork] = replace(out.forks[own_fork], joined=forked_from)
            joins.append((len(written), own_fork))
            written += self._encode(BLOCK_END)
        written += self._encode(end)
        fork_len = 0 if kind == "prompt" else out.forks[fork].fork_len
        name = out.family.name
        out.contexts.append(Context(name, kind, known_by, len(start), fork_len, fork, tuple(written)))
        for begin, own_fork in joins:
            joined, rest = start + written[:begin], tuple(written[begin:])
            fork_len = out.forks[own_fork].fork_len
            out.contexts.append(Context(name, "join", digest(joined), len(joined), fork_len, own_fork, rest))
        return written

    def _threads(self, out: Compiled, forked: list[int], part: Fork, fork: int) -> list[int]:
        """The tokens between a trigger and what the branch writes itself."""
        joined: list[int] = []
        lengths, digests = [], []
        for thread in part.threads:
            ids = self._encode(header(thread.number))
            body = self._branch(out, forked + ids, thread.body, THREAD_END, "thread", fork)
            is_first = thread is part.threads[0]
            joined += self._encode(joined_header(thread.number, first=is_first)) + body
            lengths.append(len(ids) + len(body))
            digests.append(digest(forked + ids))
        out.forks[fork] = replace(out.forks[fork], thread_tokens=tuple(lengths), threads=tuple(digests))
        return joined + self._encode(JOIN_TEXT)


def _linear(body: Body) -> str:
    """The transcript of a branch, as a stock client sees it."""
    return "".join(part if isinstance(part, str) else _linear_fork(part) for part in body)


def _linear_fork(fork: Fork) -> str:
    def of(thread: Thread) -> str:
        is_first = thread is fork.threads[0]
        return joined_header(thread.number, first=is_first) + _linear(thread.body) + THREAD_END

    return fork.outline + "".join(map(of, fork.threads)) + JOIN_TEXT + BLOCK_END


def write_script(path: Path, compiled: Iterable[Compiled], eos_id: int) -> None:
    """Write what ``replay.py`` reads: by a context's digest, what to write from there.

    Raises ValueError if a context goes on in two ways.
    """
    continuations: dict[str, tuple[int, ...]] = {}
    for context in (c for family in compiled for c in family.contexts):
        if continuations.setdefault(context.digest, context.continuation) != context.continuation:
            raise ValueError(
                f"{context.family}: a {context.kind} of another family has the same tokens and goes on "
                "differently: let families, and samples before they fork, differ"
            )
    path.write_text(json.dumps({"eos": eos_id, "continuations": continuations}))
