"""The tree of an answer, for those who train on it or evaluate it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from forkjoin.tree import drawing, files, rows
from forkjoin.tree.context import places
from forkjoin.tree.layout import Layout, lay_out
from forkjoin.tree.rows import Row
from forkjoin.tree.segment import Joined, Segment


@dataclass
class Tree:
    """An answer's segments, each after those that it sees, and its transcript.

    Example, with torch::

        layout = tree.layout
        logits = model(ids, position_ids=positions, attention_mask=mask)  # of layout, in one row
        places = [place for place, is_sampled in enumerate(layout.sampled) if is_sampled]
        rows = logits[0, [layout.predictors[place] for place in places]]
    """

    segments: list[Segment]
    #: Token ids of the answer as stock clients see it: the threads in outline order.
    answer_ids: list[int]
    #: The thread whose text is the answer, where threads voted; None: none did.
    voted: int | None = None

    @cached_property
    def layout(self) -> Layout:
        """All tokens in a row, for one forward pass. Made once: the segments are not to change after it."""
        return lay_out(self.segments)

    def linear(self) -> list[int]:
        """The transcript: the answer's token ids, the threads in outline order."""
        return list(self.answer_ids)

    def positions(self) -> list[int]:
        """The position of each token, in the order of ``layout``."""
        return list(self.layout.positions)

    def attention_mask(self) -> list[list[bool]]:
        """Who (row) attends to whom (column), in the order of ``layout``: n × n values."""
        return self.layout.attention_mask()

    def context(self, number: int) -> list[int]:
        """The text that segment ``number`` ends: all that it sees, joined threads in order, and itself."""
        return self.context_up_to(number, len(self.segments[number].token_ids))

    def context_up_to(self, number: int, num_tokens: int) -> list[int]:
        """The same up to the first ``num_tokens`` of the segment's own tokens."""
        return [self.segments[n].token_ids[offset] for n, offset in places(self.segments, number, num_tokens)]

    def rows(self) -> list[Row]:
        """One row of prompt and completion for each context; each sampled token counts in one of them.

        Raises ValueError without logprobs.
        """
        return rows.rows(self.segments)

    def final_row(self) -> Row:
        """The row of ``rows()`` that ends the answer: the request's last one, or that of the vote's winner.

        Raises ValueError if nothing was sampled, or without logprobs.
        """
        return rows.final_row(self.segments, self.voted)

    def transcript(self) -> Row:
        """One row: the prompt, and ``linear()`` with a mask. Raises ValueError without logprobs."""
        return rows.transcript(self.segments, self.answer_ids, self.voted)

    def draw(self, decode: Callable[[list[int]], str] | None = None) -> str:
        """The tree as lines of text; ``decode`` shows the beginning and end of what was written."""
        return drawing.draw(self.segments, decode)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it. Token ids that are keys become texts there, which ``from_dict`` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Tree:
        """The tree that ``to_dict`` gave. Raises KeyError or TypeError for anything else."""
        segments = []
        for fields in given["segments"]:
            joined = [Joined(**thread) for thread in fields["joined"]]
            top = fields["top_logprobs"]
            if top is not None:
                top = [{int(token): logprob for token, logprob in row.items()} for row in top]
            segments.append(Segment(**(fields | {"joined": joined, "top_logprobs": top})))
        return cls(segments, given["answer_ids"], given["voted"])

    def to_jsonl(self, path: str | Path) -> None:
        """Append the tree to the file at ``path``, as one line."""
        files.append_line(path, self.to_dict())

    def to_parquet(self, path: str | Path) -> None:
        """Write the tree to a new file at ``path``, one row a segment. Raises ImportError without pyarrow."""
        write_parquet([self], path)


def read_jsonl(path: str | Path) -> list[Tree]:
    """The trees that ``Tree.to_jsonl`` has written to the file at ``path``."""
    return [Tree.from_dict(given) for given in files.lines(path)]


def write_parquet(trees: list[Tree], path: str | Path) -> None:
    """Write ``trees`` to a new file at ``path``, one row a segment. Raises ImportError without pyarrow."""
    files.write_parquet(path, [tree.to_dict() for tree in trees])
