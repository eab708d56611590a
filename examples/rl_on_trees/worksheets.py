"""The task: worksheets of long multiplications, answers to them without a fork, and what an answer is worth.

The embedded model was trained on such worksheets (``training/task.py``). The work of a problem is most of an
answer, and no problem waits for another: an answer that forks needs fewer decoding steps. What is measured
are worksheets that were held out of the model's training. No step here sees them either.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from forkjoin import Tree
from forkjoin.tree.segment import ROOT

sys.path.append(str(Path(__file__).parents[2]))  # ``training`` is in the checkout and not in the package

from training.task import LETTERS, Problem, Worksheet, answer, triage, work

NUM_PROBLEMS = (2, 3, 4)


def draw_worksheet(rng: random.Random, *, held_out: bool) -> Worksheet:
    """A random worksheet of two to four problems, two digits by two, on the asked side of the split."""
    while True:
        letters = LETTERS[: rng.choice(NUM_PROBLEMS)]
        problems = tuple(Problem(x, rng.randint(12, 99), rng.randint(12, 99)) for x in letters)
        sheet = Worksheet(", ".join(p.text for p in problems), problems)
        if sheet.held_out == held_out:
            return sheet


def without_fork(sheet: Worksheet) -> str:
    """The right answer that works the problems out one after the other, up to its end of sequence."""
    problems = sheet.problems
    worked_out = "".join(f"{p.stated}\n{work(p)}" for p in problems)
    return f"<think>\n{triage(problems, problems, 1)}{worked_out}</think>\n{answer(problems)}"


def critical_path(tree: Tree) -> int:
    """Decoding steps with all threads side by side: the tokens that were sampled on the longest path.

    A thread begins when the segment that forked it ends. The segment after a join begins when the longest of
    the threads has ended: for dialects whose parent waits for all of them. Injected tokens are no steps.
    """
    ends: list[int] = []  # of each segment: the step that it ends with
    reached: dict[int, int] = {}  # by thread: the last step of it, and of those that it waits for
    parents: dict[int, int] = {}
    for segment in tree.segments:
        thread = segment.thread
        if segment.forked_by is None:
            begin = reached.get(thread, 0)
        else:
            begin = ends[segment.forked_by]
            parents[thread] = tree.segments[segment.forked_by].thread
        ends.append(begin + sum(segment.sampled))
        reached[thread] = ends[-1]
        while thread in parents:
            thread = parents[thread]
            reached[thread] = max(reached[thread], ends[-1])
    return reached[ROOT]


def reward(*, is_right: bool, num_steps: int, without_fork_steps: int, price: float) -> float:
    """1 for a right answer, less ``price`` for the share of steps that it needs of one without forks.

    A wrong answer gets 0, however short it is: otherwise leaving out the work would pay.
    """
    return is_right * (1 - price * num_steps / without_fork_steps)
