"""The threads' KV becomes the parent's as it is.

What follows sees all threads, each of which saw itself only, at positions that go on from the longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from forkjoin_scheduler.dialects.patterns import fill
from forkjoin_scheduler.errors import DialectError
from forkjoin_scheduler.families.stitch import thread_offset
from forkjoin_scheduler.joins.join import Join

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.dialect import Dialect, Positions
    from forkjoin_scheduler.dialects.tokenizer import Tokenizer
    from forkjoin_scheduler.families.family import Branch


class Stitch(Join):
    """A stitch: KV moves, and is not computed again."""

    moves_kv: ClassVar[bool] = True
    goes_in_stages: ClassVar[bool] = True

    kind: Literal["stitch"]

    def check(self, dialect: Dialect) -> None:
        super().check(dialect)
        if dialect.thread.context == "header" or self.opened or _changes_threads(dialect):
            raise ValueError(
                "expected threads that see their parent, with no joined_header, first_joined_header, "
                "returns or opened: a stitched thread stays as it ran"
            )
        if not self.text:
            raise ValueError("expected a join.text with the kind stitch: what follows is predicted from it")
        if dialect.swaps and dialect.fork_at != "prompt":
            raise ValueError(
                "expected swaps with the kind stitch only where a dialect forks at the prompt: elsewhere a "
                "context may hold threads, and does not stand in a row"
            )

    def check_stages(self, dialect: Dialect) -> None:
        super().check_stages(dialect)
        if not self.between_stages:
            raise ValueError(
                "expected a join.between_stages where outlines name dependencies and threads are stitched: "
                "their KV moves in the step that computes it"
            )

    def check_tokens(self, dialect: Dialect, tokenizer: Tokenizer) -> None:
        """A thread's joined header must be the end of its header, token for token."""
        joined = dialect.thread.joined_header
        if joined is None:
            return
        header_ids = tokenizer.encode(fill(dialect.thread.header, n="1"))
        joined_ids = tokenizer.encode(fill(joined, n="1"))
        if header_ids[len(header_ids) - len(joined_ids) :] != joined_ids:
            raise DialectError(
                f"dialect {dialect.name!r}: expected the tokens of thread.joined_header {joined!r} at the "
                f"end of those of thread.header {dialect.thread.header!r}; the model's tokenizer joins them "
                "otherwise"
            )

    def keeps_blocks_of(self, dialect: Dialect, thread: Branch) -> bool:
        """All threads'."""
        return True

    def num_closing_tokens(self, dialect: Dialect, tokenizer: Tokenizer) -> int:
        """The tokens that close a thread have to get their KV after what it wrote."""
        thread = dialect.thread
        return len(tokenizer.encode(thread.close + thread.tail + thread.between)) + 1

    def thread_offset(self, parent_offset: int, positions: Positions) -> int:
        """Each thread's positions go on from the fork."""
        return thread_offset(parent_offset, positions)


def _changes_threads(dialect: Dialect) -> bool:
    """Whether a joined thread would stand otherwise than as it ran."""
    thread = dialect.thread
    shortened = thread.joined_header is None or thread.header.endswith(thread.joined_header)
    return not shortened or thread.first_joined_header is not None or thread.returns is not None
