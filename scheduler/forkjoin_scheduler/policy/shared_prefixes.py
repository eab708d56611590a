"""Which rows of a step read KV together: those whose block tables begin with the same blocks.

Each row of a batch has its KV in blocks, and rows that came from one prompt begin with the same ones. A radix
tree keeps them, by block. A group is a node of it: its rows share ``num_blocks`` blocks, which attention then
reads once, not once a row. Each row is in one group at most; ``groups`` finds those that save the most.

    rows a [1 2 3 4], b [1 2 3 5], c [1 6], d [1 7]: one group of a to d on 1 saves 3 blocks, one of a and b
    on 1 2 3 with one of c and d on 1 saves 3 + 1.

Nothing here knows requests, families or the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

#: The ids of the blocks of a row, in their order.
Blocks = Sequence[int]

#: Beneath so many nested nodes, groups are not looked for: a bound on recursion. A prompt that all share, a
#: conversation, a fork and a fork inside it are four.
MAX_NESTED = 32


@dataclass(frozen=True)
class Group:
    """Rows that read their first ``num_blocks`` blocks together."""

    rows: tuple[str, ...]
    num_blocks: int

    @property
    def num_saved(self) -> int:
        """Blocks that are not read, because another row of the group reads them."""
        return (len(self.rows) - 1) * self.num_blocks


@dataclass(eq=False)
class _Node:
    #: Of some row below it; the first ``depth`` are those of all.
    blocks: Blocks
    depth: int
    parent: _Node | None
    #: Rows that have no more blocks than these.
    rows: dict[str, None] = field(default_factory=dict)
    #: By their first block after these.
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def is_single(self) -> bool:
        return not self.children and len(self.rows) == 1

    def all_rows(self) -> Iterator[str]:
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield from node.rows
            waiting += node.children.values()


#: What a choice saves, and the nodes that it makes groups of.
_Choice = tuple[int, frozenset[_Node]]


class SharedPrefixes:
    """Owns the tree of the rows that were added."""

    def __init__(self) -> None:
        self._root = _Node((), 0, None)
        self._leaves: dict[str, _Node] = {}
        #: By first block, of what has not changed since.
        self._found: dict[int, list[Group]] = {}

    def __contains__(self, row: str) -> bool:
        return row in self._leaves

    def rows(self) -> set[str]:
        """Those that were added."""
        return set(self._leaves)

    def add(self, row: str, blocks: Blocks) -> None:
        """Add a row that may share all of ``blocks``, in their order, and none after them."""
        node = self._root
        if len(blocks):
            self._found.pop(blocks[0], None)
        while node.depth < len(blocks):
            child = node.children.get(key := blocks[node.depth])
            if child is None:
                child = node.children[key] = _Node(blocks, len(blocks), node)
            elif (depth := _num_alike(blocks, child, node.depth)) < child.depth:
                between = _Node(child.blocks, depth, node)
                between.children[child.blocks[depth]] = child
                node.children[key], child.parent = between, between
                child = between
            node = child
        node.rows[row] = None
        self._leaves[row] = node

    def drop(self, row: str) -> None:
        """Forget a row that was added."""
        node = self._leaves.pop(row)
        if node.depth:
            self._found.pop(node.blocks[0], None)
        del node.rows[row]
        while (parent := node.parent) is not None and not node.rows and len(node.children) < 2:
            key = node.blocks[parent.depth]
            if node.children:
                ((_, child),) = node.children.items()
                parent.children[key], child.parent = child, parent
                return
            del parent.children[key]
            node = parent

    def groups(self) -> list[Group]:
        """The groups that save the most blocks together, each on at least two rows."""
        found = self._found
        for first, node in self._root.children.items():
            if first not in found:
                found[first] = [] if node.is_single else _groups_below(node)
        return [group for first in self._root.children for group in found[first]]


def _num_alike(blocks: Blocks, node: _Node, known: int) -> int:
    """How many blocks ``blocks`` and those of ``node`` begin with alike: ``known`` at least.

    Slices are compared, not blocks: a context of 64k tokens has thousands.
    """
    low, high = known, min(len(blocks), node.depth)
    if blocks[low:high] == node.blocks[low:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if blocks[low:middle] == node.blocks[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _groups_below(node: _Node) -> list[Group]:
    _, chosen = _best(node, 0, MAX_NESTED, {})
    return _assigned(node, chosen, MAX_NESTED)[0]


def _best(node: _Node, above: int, levels: int, known: dict[tuple[_Node, int], _Choice]) -> _Choice:
    """What is best below ``node``, whose rows else are of a group on ``above`` blocks (0: of none).

    A row in a group on d blocks counts d, and the group costs d once: its first row reads them.
    """
    if not levels:
        return above * sum(1 for _ in node.all_rows()), frozenset()
    if (node, above) not in known:
        shut = _with_rows_in(node, above, levels, known)
        saved, chosen = _with_rows_in(node, node.depth, levels, known)
        is_made = saved - node.depth > shut[0]
        known[node, above] = (saved - node.depth, chosen | {node}) if is_made else shut
    return known[node, above]


def _with_rows_in(node: _Node, depth: int, levels: int, known: dict[tuple[_Node, int], _Choice]) -> _Choice:
    """What is best if the rows of ``node``, but for groups below it, are of one on ``depth`` blocks."""
    saved, chosen = depth * len(node.rows), frozenset[_Node]()
    for child in node.children.values():
        if child.is_single:  # most are
            saved += depth
            continue
        more, others = _best(child, depth, levels - 1, known)
        saved, chosen = saved + more, chosen | others
    return saved, chosen


def _assigned(node: _Node, chosen: frozenset[_Node], levels: int) -> tuple[list[Group], list[str]]:
    """The groups at and below ``node``, and the rows that are in none of them."""
    if not levels:
        return [], list(node.all_rows())
    groups, rows = list[Group](), list(node.rows)
    for child in node.children.values():
        if child.is_single:
            rows += child.rows
            continue
        below, left = _assigned(child, chosen, levels - 1)
        groups += below
        rows += left
    if node in chosen:
        return [Group(tuple(rows), node.depth), *groups], []
    return groups, rows
