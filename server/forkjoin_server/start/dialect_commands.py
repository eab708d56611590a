"""``forkjoin dialects check`` and ``test``: a dialect against a tokenizer, and against a transcript."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.replay.replay import replay
from forkjoin_server.start.fit import found


def check(argv: list[str]) -> None:
    """Say whether the tokenizer of a model has what a dialect needs.

    Raises DialectError naming what it lacks, UsageError if there is no such model.
    """
    if len(argv) != 2:
        raise UsageError(f"dialects check: expected MODEL and DIALECT, got {' '.join(argv) or 'nothing'}")
    from forkjoin_server.vllm_seam.tokenizers import tokenizer_of

    model, dialect = argv[0], load(argv[1])
    bound = BoundDialect.bind(dialect, tokenizer_of(model))
    print(f"{model} fits {dialect.name}: {'; '.join(found(dialect, bound.dialect))}")


def test(argv: list[str]) -> None:
    """Say where the engine would fork, inject and join in a transcript, and where that differs from it.

    Exits with 1 if it differs. Raises DialectError for a dialect whose forks no transcript shows, UsageError
    for a file that can't be read.
    """
    if len(argv) != 2:
        got = " ".join(argv) or "nothing"
        raise UsageError(f"dialects test: expected DIALECT and the FILE of a transcript, got {got}")
    try:
        transcript = Path(argv[1]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"dialects test: expected a readable text in UTF-8, got {argv[1]}: {error}"
        ) from error
    seen = replay(load(argv[0]), transcript)
    for each in seen:
        print(f"{argv[1]}:{each.line}: {each.kind}: {each.text}")
    num = Counter(each.kind for each in seen)
    counted = [f"{num['fork']} forks", f"{num['join']} joins", f"{num['refused']} forks refused"]
    print(", ".join([*counted, f"{num['differs']} differences"]))
    if num["differs"]:
        raise SystemExit(1)
