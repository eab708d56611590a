"""How long grammars take to compile that pass their trial: ``python -m scripts.grammar_cost``.

xgrammar compiles each as vLLM's engine does, for a made-up vocabulary of 150,000 tokens, beside a thread that
counts the time for which it does not get to run. For docs/reliability.md.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator

from forkjoin_server.request.grammar_trials import Grammar, Trials, Verdict, block_reason

NUM_TOKENS = 150_000
#: As vLLM's engine.
THREADS = 8


def main() -> None:
    """Print a table."""
    import xgrammar

    tokens = vocabulary(NUM_TOKENS)
    info = xgrammar.TokenizerInfo([b"</s>", *tokens], xgrammar.VocabType.RAW, stop_token_ids=[0])
    compiler = xgrammar.GrammarCompiler(info, max_threads=THREADS, cache_enabled=False)
    trials = Trials(lambda: tokens)
    print("| grammar | trial, CPU s | engine, CPU s | seconds | others held, s | MiB |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    for name, grammar in grammars():
        verdict: Verdict = trials.of(grammar).result()
        if reason := block_reason([verdict]):
            print(
                f"| {name} | refused: {'time' if 'longer' in reason else 'memory'} | - | - | - | - |",
                flush=True,
            )
            continue
        with Held() as held:
            began, cpu = time.monotonic(), time.process_time()
            compiled = getattr(compiler, f"compile_{grammar.kind}")(grammar.grammar)
            took, cpu = time.monotonic() - began, time.process_time() - cpu
        mib = compiled.memory_size_bytes / 2**20
        print(
            f"| {name} | {verdict.cpu_s:.2f} | {cpu:.1f} | {took:.1f} | {held.longest_s:.2f} | {mib:.0f} |",
            flush=True,
        )
    trials.close()


def grammars() -> Iterator[tuple[str, Grammar]]:
    """Kinds of what costs most, each in sizes around what passes."""

    def schema(value: object) -> Grammar:
        return Grammar("json_schema", json.dumps(value))

    def fields(number: int, **each: object) -> dict[str, object]:
        properties = {f"k{i}": {name: value(i) if callable(value) else value for name, value in each.items()}
                      for i in range(number)}  # fmt: skip
        return {"type": "object", "properties": properties, "additionalProperties": False}

    yield "any JSON", schema({"type": "object"})
    yield "a text of at most 1,000 characters", schema({"type": "string", "maxLength": 1000})
    for number in (5, 10, 15, 30):
        lengths = fields(number, type="string", maxLength=lambda i: 200 + 50 * i)
        yield f"{number} fields, each of another length", schema(lengths)
    for number in (1000, 2500, 5000):
        yield f"{number:,} fields", schema(fields(number, type="string"))
    for number in (5_000, 19_000):
        yield f"one of {number:,} values", schema({"enum": [f"value {i}" for i in range(number)]})
    for number in (200, 1000):
        yield f"the pattern `.{{{number}}}`", schema({"type": "string", "pattern": f"^.{{{number}}}$"})
    for number in (50, 100, 200, 1000):
        parts = " ".join(f"[^{chr(97 + i % 26)}]*" for i in range(number))
        yield f"EBNF: `[^a]* [^b]* …`, {number} times", Grammar("grammar", f'root ::= "x" {parts}')
    for number in (50, 100, 400):
        rules = "\n".join(f'r{i} ::= [^{chr(97 + i % 26)}]{{0,{10 + i % 7}}} "z"' for i in range(number))
        root = " | ".join(f"r{i}" for i in range(number))
        yield f"EBNF: one of {number} rules of lengths", Grammar("grammar", f"root ::= {root}\n{rules}")


class Held(threading.Thread):
    """Notes the longest time for which this process gives another of its threads no turn."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest_s, self._over = 0.0, threading.Event()

    def __enter__(self) -> Held:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Wait for a millisecond, again and again."""
        last = time.monotonic()
        while not self._over.wait(0.001):
            now = time.monotonic()
            self.longest_s, last = max(self.longest_s, now - last), now


def vocabulary(number: int, seed: int = 1) -> list[bytes]:
    """So many tokens: bytes, numbers, spaces, characters of many scripts, words and their beginnings."""
    rng = random.Random(seed)
    known = dict.fromkeys(bytes([byte]) for byte in range(256))

    def add(text: str) -> None:
        token = text.encode()
        for end in range(2, len(token) + 1):
            known.setdefault(token[:end])

    for digits in range(1000):
        add(f"{digits:03}")
    for text in (
        " " * 80,
        "\n" * 20,
        "\t" * 20,
        "-" * 20,
        '{"',
        '":"',
        '","',
        '"},{"',
        "();",
        "=>",
        "</",
        "://",
    ):
        add(text)
    for first, last in ((0xC0, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A), (0x900, 0x97F), (0x3040, 0x30FF),
                        (0x4E00, 0x8E00), (0xAC00, 0xC000), (0x1F300, 0x1F650)):  # fmt: skip
        for code in range(first, last):
            add(chr(code))
    onsets = ["", *"bcdfghjklmnprstvw", "br", "ch", "cl", "dr", "gr", "pl", "sh", "st", "str", "th", "tr"]
    vowels = [*"aeiou", "ai", "ea", "ee", "io", "ou"]
    codas = ["", "", *"nrstl", "nd", "ng", "st", "ck"]
    while len(known) < number:
        syllables = (
            rng.choice(onsets) + rng.choice(vowels) + rng.choice(codas) for _ in range(rng.randint(1, 4))
        )
        word = "".join(syllables)
        add(rng.choice((word, f" {word}", f" {word}", f" {word.capitalize()}", f"_{word}")))
    return list(known)[:number]


if __name__ == "__main__":
    main()
