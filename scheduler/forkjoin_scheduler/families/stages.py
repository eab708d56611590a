"""In which stages the threads of a fork start, whose outlines name the threads that they depend on.

A stage starts when the one before it has been joined, so its threads see all that earlier stages wrote.
Stages follow the outlines in their order: a thread that depends on one of its own stage begins the next. So
MedVerse's released training lays out its attention (arXiv 2602.07529, ``train/utils.py``), and the transcript
in outline order is the joined context. A thread may thus wait longer than for what it names, and see more::

    outlines   1: []   2: []   3: [1]   4: [2]   5: [3, 4]
    stages     1, 2          | 3, 4            | 5

Invariants (pinned by tests): each thread stands after the stages of all that it depends on; one after the
other, the stages are the outlines in their order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: What stands between the numbers of a list of dependencies.
_BETWEEN = re.compile(r"[\s,;]+")


def read_dependencies(text: str) -> tuple[str, ...]:
    """The numbers in a list of them.

    >>> read_dependencies(" 1, 2.1,")
    ('1', '2.1')
    """
    return tuple(filter(None, _BETWEEN.split(text)))


def in_stages(threads: Sequence[tuple[str, Sequence[str]]]) -> tuple[tuple[int, ...], int]:
    """How many threads each stage has, and how many dependencies name no thread announced before.

    ``threads``: the number of each, and those that it depends on. A dependency on itself, on a later thread
    or on none at all can't be waited for: the thread starts as if it were not named.

    >>> in_stages([("1", []), ("2", []), ("3", ["1"]), ("4", ["2", "9"]), ("5", ["3", "4"])])
    ((2, 2, 1), 1)
    """
    stages: list[list[str]] = []
    known: set[str] = set()
    num_wrong = 0
    for number, depends_on in threads:
        if not stages or not set(stages[-1]).isdisjoint(depends_on):
            stages.append([])
        stages[-1].append(number)
        num_wrong += len(set(depends_on) - known)
        known.add(number)
    return tuple(map(len, stages)), num_wrong
