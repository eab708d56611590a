"""Which rows read KV together, against all ways to put a few rows into groups."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from forkjoin_scheduler.policy.shared_prefixes import MAX_NESTED, Group, SharedPrefixes
from tests.tiers import Tier


def _tree(rows: dict[str, list[int]]) -> SharedPrefixes:
    tree = SharedPrefixes()
    for row, blocks in rows.items():
        tree.add(row, blocks)
    return tree


def _saved(groups: list[Group]) -> int:
    return sum(group.num_saved for group in groups)


def _partitions(rows: list[str]) -> Iterator[list[list[str]]]:
    if not rows:
        yield []
        return
    first, *others = rows
    for parts in _partitions(others):
        yield [[first], *parts]
        for i, part in enumerate(parts):
            yield [*parts[:i], [first, *part], *parts[i + 1 :]]


def _num_shared(rows: list[list[int]]) -> int:
    num = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        num += 1
    return num


def _most_saved(rows: dict[str, list[int]]) -> int:
    return max(
        sum((len(part) - 1) * _num_shared([rows[r] for r in part]) for part in parts)
        for parts in _partitions(list(rows))
    )


def _random_rows(chance: random.Random, num: int, most: int) -> dict[str, list[int]]:
    """Rows that begin as another does, up to some block, and go on in blocks of their own."""
    rows: dict[str, list[int]] = {}
    fresh = iter(range(10_000))
    for i in range(num):
        like = chance.choice(list(rows.values())) if rows and chance.random() < 0.85 else []
        own = [next(fresh) for _ in range(chance.randint(0, most))]
        rows[f"r{i}"] = [*like[: chance.randint(0, len(like))], *own]
    return rows


def _check(rows: dict[str, list[int]], groups: list[Group]) -> None:
    """Raise AssertionError unless each group shares what it says, and no row is in two."""
    grouped = [row for group in groups for row in group.rows]
    assert len(grouped) == len(set(grouped))
    for group in groups:
        assert len(group.rows) >= 2
        assert 0 < group.num_blocks <= _num_shared([rows[r] for r in group.rows])


CASES = {
    "nothing shared": ({"a": [1, 2], "b": [3]}, []),
    "no blocks": ({"a": [], "b": []}, []),
    "one alone": ({"a": [1, 2, 3]}, []),
    "siblings": ({"a": [1, 2, 3], "b": [1, 2, 4], "c": [1, 2]}, [("abc", 2)]),
    "two families": ({"a": [1, 2], "b": [5], "c": [1, 3], "d": [5, 6]}, [("ac", 1), ("bd", 1)]),
    "a family in a crowd": (
        {"a": [1, 2, 3, 4], "b": [1, 2, 3, 5], "c": [1, 6], "d": [1, 7]},
        [("cd", 1), ("ab", 3)],
    ),
    "a crowd that saves more than a family": (
        {"a": [1, 2, 3, 4], "b": [1, 2, 3, 5], "c": [1, 2, 6], "d": [1, 2, 7]},
        [("abcd", 2)],
    ),
}


@pytest.mark.parametrize(("rows", "wanted"), CASES.values(), ids=CASES)
def test_rows_that_begin_alike_are_one_group(rows, wanted):
    groups = [("".join(sorted(g.rows)), g.num_blocks) for g in _tree(rows).groups()]
    assert sorted(groups) == sorted(wanted)


def test_groups_save_as_much_as_any_way_to_group_the_rows(tier):
    for seed in range(600 if tier is Tier.ALL else 60):
        chance = random.Random(seed)
        rows = _random_rows(chance, chance.randint(2, 7), most=4)
        groups = _tree(rows).groups()
        _check(rows, groups)
        assert _saved(groups) == _most_saved(rows), rows


def test_rows_that_come_and_go_leave_the_groups_of_those_that_stay(tier):
    """A tree that changes answers as one that is made anew, and an empty one keeps nothing."""
    for seed in range(50 if tier is Tier.ALL else 4):
        chance = random.Random(seed)
        rows = _random_rows(chance, 40, most=6)
        tree, there = SharedPrefixes(), dict[str, list[int]]()
        for _ in range(100):
            row = chance.choice(list(rows))
            if row in there:
                tree.drop(row)
                del there[row]
            else:
                tree.add(row, rows[row])
                there[row] = rows[row]
            groups = tree.groups()
            _check(there, groups)
            assert _saved(groups) == _saved(_tree(there).groups())
        assert tree.rows() == there.keys()
        for row in list(there):
            tree.drop(row)
        assert not tree._root.children
        assert tree.groups() == []


def test_very_nested_rows_are_grouped_without_an_end_of_the_stack():
    num = 40 * MAX_NESTED
    rows = {f"r{i}": list(range(i + 1)) for i in range(num)}
    assert _saved(_tree(rows).groups()) > 0
