"""``forkjoin dialects infer``: which dialect a model or a transcript speaks, and what says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.dialects.fitting import Candidate, candidates_of_model, fitting
from forkjoin_scheduler.errors import UsageError
from forkjoin_server.start.model_files import read


def infer(argv: list[str]) -> None:
    """Print what speaks for and against each dialect, those that fit first.

    Exits with 1 unless one alone fits. Raises UsageError for what is no model and no transcript, DialectError
    for a wrong file of a dialect.
    """
    if not argv:
        raise UsageError(
            "dialects infer: expected a MODEL (a folder or a name), or the FILE of a transcript, got nothing"
        )
    dialects = [load(name) for name in (*builtin_names(), *argv[1:])]
    candidates = _candidates(argv[0], dialects)
    fit = fitting(candidates)
    for candidate in sorted(candidates, key=lambda c: (c not in fit, not c.fits, not c.speaks_for)):
        print("\n".join(_lines(candidate, fit)))
    if len(fit) != 1:
        names = ", ".join(candidate.dialect.name for candidate in fit) or "none"
        print(f"expected one dialect that fits, got {names}")
        raise SystemExit(1)
    name = fit[0].dialect.name
    variants = ", ".join(dialect.name for dialect in dialects if dialect.variant_of == name)
    print(f"{name} alone fits" + (f"; its variants have the same tags: {variants}" if variants else ""))


def _candidates(given: str, dialects: list[Dialect]) -> list[Candidate]:
    if Path(given).is_file():
        from forkjoin_scheduler.replay.recognise import candidates_of_transcript

        try:
            return candidates_of_transcript(dialects, Path(given).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"dialects infer: expected a readable text in UTF-8, got {given}: {error}"
            ) from error
    if (facts := read(given)) is None:
        raise UsageError(
            "dialects infer: expected the FILE of a transcript, or a MODEL with a tokenizer (a folder, or a "
            f"name on the hub), got {given}"
        )
    return candidates_of_model(dialects, facts)


def _lines(candidate: Candidate, fit: list[Candidate]) -> Iterator[str]:
    gives_way = "gives way to one that fits and explains more tags" if candidate.fits else "does not fit"
    yield f"{candidate.dialect.name}: {'fits' if candidate in fit else gives_way}"
    yield from (f"  for      {text}" for text in candidate.speaks_for)
    yield from (f"  against  {text}" for text in candidate.speaks_against)
    if not (candidate.speaks_for or candidate.speaks_against):
        yield "  nothing speaks for it or against it"
