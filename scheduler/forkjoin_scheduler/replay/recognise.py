"""Which dialects a transcript may be written in: whose trigger it has, and what a replay shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.fitting import Candidate, listed, marks, writes
from forkjoin_scheduler.dialects.patterns import find_all
from forkjoin_scheduler.replay.replay import is_shown, replay


def candidates_of_transcript(dialects: Sequence[Dialect], transcript: str) -> list[Candidate]:
    """Each of ``dialects`` that is no variant of another, and what ``transcript`` says of it."""
    dialects = [dialect for dialect in dialects if dialect.variant_of is None]
    seen = frozenset(mark for dialect in dialects for mark in marks(dialect) if mark in transcript)
    return [_of_transcript(dialect, transcript, seen) for dialect in dialects]


def _of_transcript(dialect: Dialect, transcript: str, seen: frozenset[str]) -> Candidate:
    if dialect.trigger is None:
        own = [mark for mark in marks(dialect) if mark in seen]
        speaks_for = [f"it has {listed(own)}"] if own else []
        against, fits = [] if own else ["it has none of its tags"], bool(own)
    else:
        speaks_for, against, fits = _triggered(dialect, dialect.trigger, transcript)
    return Candidate(
        dialect,
        tuple(speaks_for),
        tuple(against),
        fits,
        frozenset(mark for mark in seen if writes(dialect, mark)),
        is_shown(dialect) and fits and not against,
    )


def _triggered(dialect: Dialect, trigger: str, transcript: str) -> tuple[list[str], list[str], bool]:
    """What speaks for ``dialect`` and against it, and whether ``transcript`` may have a fork of it."""
    pattern = re.escape(trigger) if dialect.tags_are == "tokens" else trigger
    num = len(find_all(pattern, transcript))
    if not num:
        return [], [f"it has no {trigger.strip()}"], False
    speaks_for, against = [f"it has {num} times {trigger.strip()}"], list[str]()
    if not is_shown(dialect):
        return speaks_for, against, True
    found = Counter(each.kind for each in replay(dialect, transcript))
    if found["fork"]:
        speaks_for.append(f"replayed, it forks {found['fork']} times and joins {found['join']}")
    if found["differs"]:
        against.append(f"replayed, {found['differs']} places differ")
    if found["refused"]:
        against.append(f"replayed, {found['refused']} forks are refused")
    return speaks_for, against, bool(found["fork"])
