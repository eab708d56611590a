"""What forking gave, in a line."""

from __future__ import annotations

from forkjoin.answer import Answer


def summary(answer: Answer, took_s: float | None = None) -> str:
    """One line about an answer: its threads, its steps, and its time where that is known."""
    parts = []
    counts = answer.usage.forkjoin if answer.usage else None
    if counts is None or counts.num_threads == 0:
        parts.append("no threads")
        if answer.usage:
            parts.append(f"{answer.usage.completion_tokens} tokens")
    else:
        parts.append(f"{counts.num_threads} threads")
        parts.append(f"{counts.total_tokens} tokens in {counts.critical_path_tokens} steps")
        if counts.critical_path_tokens:
            parts.append(f"{counts.total_tokens / counts.critical_path_tokens:.2f} tokens a step")
    if took_s is not None:
        parts.append(f"{took_s:.2f} s")
    return " · ".join(parts)
