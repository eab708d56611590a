"""The server that the playground is tested on: the embedded model, an API key, and answers that are written down.

A prompt that is one word gets the answer of that name, token by token; any other the model answers. By hand:

    python -m tests.browser.serving
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from forkjoin_bench.inputs.dialects import write_dialect
from forkjoin_bench.inputs.script import Compiler, write_script
from forkjoin_bench.inputs.traces import Family, Fork, Thread
from forkjoin_bench.vllm_seam.serving import SCRIPT_VARIABLE
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of
from tests.browser.unhurried import UNHURRIED, Unhurried
from tests.importing import ROOT, importable
from tests.server.conftest import start_server

KEY = "a-key-of-the-test"

_CHECKS = Fork(
    (
        Thread(
            "2.1.1", "check by 9", (" 4+8+2=14, 1+4=5; 7+3+1=11, 1+1=2; 5*2=10, 1+0=1. 3+5+2+3+4+2=19, 1 ok",)
        ),
        Thread("2.1.2", "check by 11", (" 2-8+4=-2; 1-3+7=5; -10 is 1 mod 11. 2-4+3-2+5-3=1 ok",)),
    )
)
_SUMS = Fork(
    (
        Thread(
            "2.1",
            "482*731",
            (" 482*700=337400, 482*31=14942, so 352342. Check it in two ways.\n", _CHECKS, "\nBoth agree."),
        ),
        Thread(
            "2.2",
            "9047*36",
            (" 9047*36 = 9047*30 + 9047*6 = 271410 + 54282 = 325692, which needs no further check.",),
        ),
    )
)
_NESTED = Fork(
    (
        Thread("1", "read the question", (" Two products are asked for, and the larger of them.",)),
        Thread("2", "work them out", (" Each by itself.\n", _SUMS, "\nThey are 352342 and 325692.")),
    )
)
_FIFTY = Fork(
    tuple(
        Thread(f"{i}", f"part {i}", (f" This is part {i} of fifty, " + "and it goes on " * (i % 4),))
        for i in range(1, 51)
    )
)
#: Two threads of as many tokens as a context holds.
_LONG = Fork(tuple(Thread(f"{i}", f"part {i}", (" on" * (600 + i),)) for i in range(1, 3)))
#: By the prompt that asks for each.
ANSWERS = {
    "nest": ("Let us see. ", _NESTED, "\n352342 is the larger."),
    "fifty": ("Fifty parts. ", _FIFTY, "\nAll fifty are done."),
    UNHURRIED: ("It takes a while. ", _LONG, "\nThat was long."),
    "malformed": ("So: <Parallel>\n<Outlines>\nfirst this, then that\n</Outlines>\nin a row after all.",),
}


@contextlib.contextmanager
def playground_server(folder: Path) -> Iterator[str]:
    """The address of the server, which writes into ``folder``."""
    tokenizer, script = tokenizer_of(str(EMBEDDED_MODEL)), folder / "script"
    (eos_id,) = tokenizer.encode("<|end|>")
    compiler = Compiler(tokenizer)
    families = [Family(name, f"<|user|>{name}<|assistant|>", text) for name, text in ANSWERS.items()]
    write_script(script, [compiler.compile(family) for family in families], eos_id)
    flags = ["--dialect", str(write_dialect(folder, "reprefill")), "--logits-processors"]
    flags += [f"{Unhurried.__module__}:{Unhurried.__name__}"]
    # A model of this size writes spaces for ever where a grammar lets it.
    flags += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    flags += ["--api-key", KEY, "--open-routes", "/health,/ready,/metrics,/playground"]
    env = importable(ROOT) | {SCRIPT_VARIABLE: str(script)}
    with start_server(folder / "log", *flags, env=env) as (address, _):
        yield address


def main() -> None:
    """Serve until interrupted."""
    with tempfile.TemporaryDirectory() as folder, playground_server(Path(folder)) as address:
        print(f"{address}/playground, with the key {KEY}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
