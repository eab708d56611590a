"""ParaThinker: paths of a fixed number after the prompt; the first to end cuts the others off, then a summary.

Its paths have KV of their own, with a learned part, and are put beside each other: no client of a stock server
can, and texts alone are compared.
"""

from __future__ import annotations

from tests.reference_clients.completions import Completions

SUMMARY = "<summary>By analyzing multiple reasoning processes above, I concluded that: The final answer is"


def answer(model: Completions, prompt: str, num_paths: int, max_tokens: int | None = None) -> str:
    """All that follows ``prompt`` in the end."""

    paths = range(1, num_paths + 1)
    ends = [*(f"</think{n}>" for n in paths), "</think>", "</summary>"]

    def write(n: int, num_tokens: int | None) -> tuple[str, int]:
        """The path ``n``, and its tokens, the end of sequence among them."""
        piece = model.write(f"{prompt}<think{n}>", ends, branch=f"/0.{n - 1}", max_tokens=num_tokens)
        return piece.text, piece.num_tokens + (piece.stop is None and piece.num_tokens != num_tokens)

    shortest = min(write(n, max_tokens)[1] for n in paths)
    text = "".join(f"<think{n}>{write(n, shortest)[0]}" for n in paths) + SUMMARY
    return text + model.write(prompt + text, ["</summary>"]).text.removesuffix("</summary>")
