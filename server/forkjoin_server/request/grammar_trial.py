"""Compiles grammars on trial, each in a process of its own that ends with its budget.

Run as a process by ``grammar_trials.py``, which writes a line of JSON for each grammar and reads one of each
verdict. It forks for each: who has imported xgrammar need not do so again, and a grammar that takes too long
takes nobody with it. It ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from typing import Any

#: The end of a text and all bytes, with which a vocabulary begins.
NUM_SINGLE = 257
#: More than a grammar within its seconds of CPU takes; what takes more has no bound.
_MAX_BYTES = 4 << 30


def main() -> None:
    """Try one grammar after the other. The first line is the vocabulary."""
    import xgrammar

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its server's to hear
    vocabulary = [bytes.fromhex(token) for token in json.loads(sys.stdin.buffer.readline())]
    compilers = []
    for tokens in (vocabulary[:NUM_SINGLE], vocabulary):
        info = xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, stop_token_ids=[0])
        compilers.append(xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False))
    for line in sys.stdin.buffer:
        verdict = _tried(compilers, json.loads(line))
        sys.stdout.buffer.write(json.dumps(verdict).encode() + b"\n")
        sys.stdout.buffer.flush()


def _tried(compilers: list[Any], job: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reader)
        _try(compilers, job, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status == 0:
        return {"is_over": False, **json.loads(said)}
    return {"is_over": True, "error": "", "num_bytes": 0, "cpu_s": 0}


def _try(compilers: list[Any], job: dict[str, Any], writer: int) -> None:
    """In the process of one grammar: compile it, say what is wrong with it, and end.

    What it takes more memory with the longer tokens than without them, grows with a vocabulary.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (2 * job["cpu_s"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_bytes_in_use() + _MAX_BYTES,) * 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # warnings, of every grammar again
    error, sizes, began = "", [0, 0], 0.0
    try:
        for n, compiler in enumerate(compilers):
            began = time.process_time()
            compiled = getattr(compiler, f"compile_{job['kind']}")(job["grammar"], **job["options"])
            sizes[n] = compiled.memory_size_bytes
            if n == 0 and not _begins(compiled):
                error = "no text obeys it"
                break
    except MemoryError:
        os._exit(1)
    except Exception as raised:  # of whatever kind the library raises of a client's grammar
        error = str(raised)[:1000]
    cpu_s = time.process_time() - began
    os.write(writer, json.dumps({"error": error, "num_bytes": sizes[1] - sizes[0], "cpu_s": cpu_s}).encode())
    os._exit(0)


def _begins(compiled: Any) -> bool:
    """Whether any byte, or the end of the text, may come first. ``compiled``: for the single bytes."""
    import xgrammar

    allowed = xgrammar.allocate_token_bitmask(1, NUM_SINGLE)
    xgrammar.GrammarMatcher(compiled).fill_next_token_bitmask(allowed)
    return bool(allowed.any())


def _bytes_in_use() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
