"""What a dialect needs of a model's tokenizer, in words."""

from __future__ import annotations

from forkjoin_scheduler.dialects.dialect import Dialect


def found(dialect: Dialect, bound: Dialect) -> list[str]:
    """What ``dialect`` needs and the tokenizer that it was ``bound`` to has."""
    found = []
    if dialect.control_tokens:
        found.append(f"each of {', '.join(dialect.control_tokens)} is one token")
    if dialect.tags_are == "text":
        found.append("its tags are text, which any tokenizer writes")
    if bound != dialect:
        found.append("the chat template gives the turns that it speaks in")
    return found or ["it needs nothing of the tokenizer"]
