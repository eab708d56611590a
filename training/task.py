"""The worksheet: a prompt with several multiplications, and the transcript that answers it.

A problem is *short* when both factors have one digit, *long* otherwise. A factor may be the product of an
earlier problem (``c=a*27``): such a problem *waits* until that one is solved. So a worksheet is solved in
levels: what can be worked on now, then what waited for it, and so on. Where a level has at least two long
problems the model forks, with one thread for each; else it works inline.

``a=48*36, b=75*92, d=7*8, c=a*27`` begins with a line that says of each problem what becomes of it: its
number in the order of solving, its product if it is short, or what it waits for::

    a1 b2 d7*8 d:56 ca?

and after the join, where ``a`` is known, ``ca3``. The value of ``a`` is named beside the problem that needs
it: ``c=a*27 a:1728``. How a product is worked out: ``multiply.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from training.multiply import long_multiplication

LETTERS = "abcdefghi"
#: One prompt in this many is held out of the training, by a hash of its problems.
HELD_OUT_MODULUS = 50

_NUMBER_OF_THREADS = re.compile(r"<Outline>[0-9]+: ")


@dataclass(frozen=True)
class Problem:
    """One multiplication ``letter=m*n``, or ``letter=of*n`` where ``m`` is the product of problem ``of``."""

    letter: str
    m: int
    n: int
    of: str | None = None

    @property
    def is_long(self) -> bool:
        """Whether it deserves work of its own, and a thread beside others."""
        return self.m > 9 or self.n > 9

    @property
    def product(self) -> int:
        """The right answer."""
        return self.m * self.n

    @property
    def text(self) -> str:
        """As the prompt states it, such as ``a=48*36`` or ``c=a*27``."""
        return f"{self.letter}={self.of or self.m}*{self.n}"

    @property
    def stated(self) -> str:
        """As its outline and its work state it: with the value that it waited for, if it did."""
        return self.text if self.of is None else f"{self.text} {self.of}:{self.m}"


@dataclass(frozen=True)
class Worksheet:
    """A prompt and the problems in it; one that waits stands behind the one that it waits for."""

    prompt: str
    problems: tuple[Problem, ...]

    @property
    def long_problems(self) -> tuple[Problem, ...]:
        """The long problems, in the order of the prompt."""
        return tuple(p for p in self.problems if p.is_long)

    @property
    def levels(self) -> tuple[tuple[Problem, ...], ...]:
        """The long problems by when they can be solved, each level in the order of the prompt."""
        level: dict[str, int] = {}
        for p in self.problems:
            level[p.letter] = 0 if p.of is None else level[p.of] + 1
        found: list[list[Problem]] = [[] for _ in range(1 + max(level.values(), default=0))]
        for p in self.problems:
            if p.is_long:
                found[level[p.letter]].append(p)
        return tuple(map(tuple, found))

    @property
    def num_threads(self) -> int:
        """How many threads the right transcript has, in all its forks."""
        return sum(len(level) for level in self.levels if len(level) > 1)

    @property
    def num_forks(self) -> int:
        """How many times the right transcript forks."""
        return sum(len(level) > 1 for level in self.levels)

    @property
    def held_out(self) -> bool:
        """Whether the worksheet belongs to the evaluation (never trained on)."""
        return sum(p.m * 31 + p.n * 17 for p in self.problems) % HELD_OUT_MODULUS == 0


@dataclass(frozen=True)
class Fork:
    """What the model writes up to a fork, ending with ``</Outlines>``, and the threads of it.

    Each thread is its number and the text after its header, ending in ``</Thread>``.
    """

    opening: str
    threads: tuple[tuple[int, str], ...]

    @property
    def joined(self) -> str:
        """Opening and threads as they stand after the join."""
        return f"{self.opening}\n" + "".join(f"<Thread>\n{i}:{text}" for i, text in self.threads) + "\n"

    def thread(self, index: int) -> tuple[str, str]:
        """Thread ``index`` (from 0) in its own context: the header that the engine writes, and its text."""
        number, text = self.threads[index]
        return f"\n<Thread>\n{number}:", text


@dataclass(frozen=True)
class Transcript:
    """The right answer to a worksheet, in the pieces that forks and joins make of it."""

    forks: tuple[Fork, ...]
    closing: str

    @property
    def linear(self) -> str:
        """The whole transcript as a stock client sees it."""
        return "".join(f.joined for f in self.forks) + self.closing


@dataclass(frozen=True)
class Verdict:
    """What a program can say of an answer."""

    right: bool
    num_forks: int
    num_threads: int
    well_formed: bool


def work(problem: Problem) -> str:
    """The long multiplication of ``problem``, ending in ``letter:product`` and a newline."""
    return f"{long_multiplication(problem.m, problem.n)}{problem.letter}:{problem.product}\n"


def triage(problems: tuple[Problem, ...], now: tuple[Problem, ...], first_number: int) -> str:
    """A word or two on each of ``problems``: those to solve ``now`` get numbers from ``first_number`` on."""
    marks, number = [], first_number
    for p in problems:
        if p in now:
            marks.append(f"{p.letter}{p.of or ''}{number}")
            number += 1
        elif p.is_long:
            marks.append(f"{p.letter}{p.of}?")
        else:
            marks.append(f"{p.letter}{p.m}*{p.n} {p.letter}:{p.product}")
    return " ".join(marks) + "\n"


def answer(problems: tuple[Problem, ...]) -> str:
    """The final answer: every product, with the last digit of the running total beside it."""
    lines, total = [], 0
    for p in problems:
        total = (total + p.product) % 10
        lines.append(f"{p.letter}={p.product} ({total})")
    lines.append(f"total ends in {total}")
    return "\n".join(lines)


def transcript(sheet: Worksheet) -> Transcript:
    """The right transcript of ``sheet`` (without the end-of-sequence token)."""
    forks: list[Fork] = []
    text, undone, number = "<think>\n", sheet.problems, 1
    for now in sheet.levels:
        text += triage(undone, now, number)
        if len(now) > 1:
            numbered = list(enumerate(now, number))
            outlines = "".join(f"<Outline>{i}: {p.stated}</Outline>\n" for i, p in numbered)
            threads = tuple((i, f" {p.stated}\n{work(p)}</Thread>") for i, p in numbered)
            forks.append(Fork(f"{text}<Parallel>\n<Outlines>\n{outlines}</Outlines>", threads))
            text = "</Parallel>\n"
        else:
            text += "".join(f"{p.stated}\n{work(p)}" for p in now)
        number += len(now)
        undone = tuple(p for p in undone if p.is_long and p not in now)
    return Transcript(tuple(forks), f"{text}</think>\n{answer(sheet.problems)}")


def check(sheet: Worksheet, text: str) -> Verdict:
    """Judge a linear transcript ``text`` (think part and answer) for ``sheet``."""
    thinking, _, final = text.partition("</think>\n")
    opened, closed = thinking.count("<Thread>"), thinking.count("</Thread>")
    num_threads = len(_NUMBER_OF_THREADS.findall(thinking))
    num_forks = thinking.count("<Parallel>")
    well_formed = (
        thinking.startswith("<think>\n")
        and opened == closed == num_threads
        and num_forks == thinking.count("</Parallel>")
        and (num_threads > 0) == (num_forks > 0)
    )
    return Verdict(final == answer(sheet.problems), num_forks, num_threads, well_formed)
