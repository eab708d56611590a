"""ParaThinker: paths of a fixed number after the prompt; the first to end cuts the others off, then a summary.

Its paths have KV of their own, with a learned part, and are put beside each other: no client of a stock server
can, and texts alone are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.reference_clients.completions import Completions

SUMMARY = "<summary>By analyzing multiple reasoning processes above, I concluded that: The final answer is"


@dataclass(frozen=True)
class Path:
    """What a path wrote: as the answer shows it, as the model sees it, and its tokens."""

    shown: str
    seen: str
    num_tokens: int


def answer(model: Completions, prompt: str, num_paths: int, max_tokens: int | None = None) -> str:
    """All that follows ``prompt`` in the end."""

    paths = range(1, num_paths + 1)
    ends = [*(f"</think{n}>" for n in paths), "</think>", "</summary>"]
    #: In whose place <think1> stands in what the path sees.
    openings = [*(f"<think{n}>" for n in paths if n > 1), "<summary>"]

    def write(n: int, num_tokens: int | None) -> Path:
        """The path ``n``, an end of sequence among its tokens."""
        shown = seen = f"<think{n}>"
        used, stop = 0, openings[0]
        while stop in openings:
            left = None if num_tokens is None else num_tokens - used
            piece = model.write(prompt + seen, [*ends, *openings], branch=f"/0.{n - 1}", max_tokens=left)
            used, stop = used + piece.num_tokens, piece.stop
            shown += piece.text
            seen += piece.text
            if stop in openings:
                shown += "<think1>"
                seen = seen.removesuffix(stop) + "<think1>"
        return Path(shown, seen, used + (stop is None and used != num_tokens))

    shortest = min(write(n, max_tokens).num_tokens for n in paths)
    written = [write(n, shortest) for n in paths]
    context = prompt + "".join(path.seen for path in written) + SUMMARY
    summary = model.write(context, ["</summary>"]).text.removesuffix("</summary>")
    return "".join(path.shown for path in written) + SUMMARY + summary
