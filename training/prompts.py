"""Random worksheets: problems beside each other, and problems that wait for each other."""

from __future__ import annotations

import random
from collections.abc import Sequence

from training.multiply import MULTIPLICAND_LABELS, MULTIPLIER_LABELS
from training.task import LETTERS, Problem, Worksheet

#: (digits of the multiplicand, digits of the multiplier) -> weight. Near-equal threads, so that the longest
#: of a fork is not much longer than the mean.
LONG_SIZES = {(3, 3): 40, (4, 2): 25, (4, 3): 14, (5, 2): 8, (3, 2): 8, (2, 2): 3, (2, 1): 1, (3, 1): 1}
#: The same for a problem that another waits for, by the most digits that its product may have.
AWAITED_SIZES = {
    5: {(2, 2): 50, (3, 2): 30, (3, 1): 10, (4, 1): 5, (2, 1): 5},
    4: {(2, 2): 60, (3, 1): 30, (2, 1): 10},
}
PREFIXES = ("", "", "Solve ", "Work out ", "Compute ")
SEPARATORS = ("\n", ", ", "; ")
SUFFIXES = ("", "", ".", "?")


def make_worksheet(
    rng: random.Random, *, num_long: int, num_short: int = 0, held_out: bool = False
) -> Worksheet:
    """A random worksheet of problems that do not wait, in random order, on the asked side of the split."""
    return make_chain(rng, levels=(num_long,), num_short=num_short, held_out=held_out)


def make_chain(
    rng: random.Random,
    *,
    levels: Sequence[int],
    num_short: int = 0,
    letters: Sequence[str] = LETTERS,
    held_out: bool = False,
) -> Worksheet:
    """A random worksheet of ``levels[i]`` long problems of level i, each waiting for one of the level before.

    At most three levels; short problems stand anywhere; the problems have the first of ``letters``, in their
    order. Raises ValueError if there are more than letters.
    """
    if sum(levels) + num_short > len(letters):
        raise ValueError(f"expected at most {len(letters)} problems, got {sum(levels) + num_short}")
    while True:
        problems = _problems(rng, levels, num_short, letters)
        body = rng.choice(SEPARATORS).join(p.text for p in problems)
        sheet = Worksheet(rng.choice(PREFIXES) + body + rng.choice(SUFFIXES), problems)
        if sheet.held_out == held_out:
            return sheet


def _problems(
    rng: random.Random, levels: Sequence[int], num_short: int, letters: Sequence[str]
) -> tuple[Problem, ...]:
    """The problems in an order of the prompt in which none stands before the one that it waits for."""
    kinds = [-1] * num_short + [level for level, count in enumerate(levels) for _ in range(count)]
    rng.shuffle(kinds)
    order = _what_waits_behind(kinds)
    awaits: dict[int, int] = {}
    for i, level in enumerate(order):
        if level > 0:
            awaits[i] = rng.choice([j for j in range(i) if order[j] == level - 1])
    problems: list[Problem] = []
    for i, level in enumerate(order):
        letter = letters[i]
        if level < 0:
            problems.append(Problem(letter, rng.randint(2, 9), rng.randint(2, 9)))
            continue
        awaited = i in awaits.values()
        # Two more levels to come: their products have to fit into a multiplicand too.
        room = len(MULTIPLICAND_LABELS) - (len(levels) - 2 - level)
        if i not in awaits:
            sizes = AWAITED_SIZES[room] if awaited else LONG_SIZES
            a, b = rng.choices(list(sizes), weights=list(sizes.values()))[0]
            problems.append(Problem(letter, _number(rng, a), _number(rng, b)))
        else:
            before = problems[awaits[i]]
            digits = len(str(before.product))
            most = room - digits if awaited else len(MULTIPLIER_LABELS) - (digits > 4)
            b = min(most, rng.choices((1, 2, 3), weights=(5, 45, 50))[0])
            problems.append(Problem(letter, before.product, _number(rng, b), before.letter))
    return tuple(problems)


def _what_waits_behind(kinds: list[int]) -> list[int]:
    """``kinds`` with as few moves as needed for each level to have one of the level before ahead of it."""
    waiting, order = list(kinds), []
    while waiting:
        i = next(i for i, level in enumerate(waiting) if level <= 0 or level - 1 in order)
        order.append(waiting.pop(i))
    return order


def _number(rng: random.Random, digits: int) -> int:
    low = 10 ** (digits - 1)
    return rng.randint(max(low, 2), 10 * low - 1)
