"""The worksheet: a prompt with several multiplications, and the transcript that answers it.

Every token of the worked answer is *one hop* from its inputs: a digit is found by a label that is
unique in its thread, a carry at a fixed distance. That is what lets a model of two million weights
do long multiplication almost without error (see README.md of the embedded model).

A problem is *short* when both factors have one digit, *long* otherwise. The model forks when at
least two problems are long, with one thread for each long one.

Work of ``a=48*36`` (digits are labelled from the most significant: p q r s, x y z; accumulator
places A, B, C … are 10^0, 10^1, 10^2 …)::

    p4q8*x3y6
    y6A:q8*6=48+0=48A8;p4*6=24+4=28B8;C2
    x3B:q8*3=24+0=24+B8=32B2;p4*3=12+3=15+C2=17C7;D1
    D1C7B2A8
    a:1728
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

LETTERS = "abcdefg"
MULTIPLICAND_LABELS = "pqrs"
MULTIPLIER_LABELS = "xyz"
PLACES = "ABCDEFG"

#: (digits of the multiplicand, digits of the multiplier) -> weight. Near-equal threads, so that
#: the longest of six is not much longer than the mean.
LONG_SIZES = {(3, 3): 50, (4, 2): 35, (3, 2): 10, (2, 2): 3, (2, 1): 1, (3, 1): 1}
PREFIXES = ("", "", "Solve ", "Work out ", "Compute ")
SEPARATORS = ("\n", ", ", "; ")
SUFFIXES = ("", "", ".", "?")
#: One prompt in this many is held out of the training, by a hash of its problems.
HELD_OUT_MODULUS = 50

_NUMBER_OF_THREADS = re.compile(r"<Outline>[0-9]+: ")


@dataclass(frozen=True)
class Problem:
    """One multiplication ``letter=m*n``."""

    letter: str
    m: int
    n: int

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
        """As the prompt states it, such as ``a=48*36``."""
        return f"{self.letter}={self.m}*{self.n}"


@dataclass(frozen=True)
class Worksheet:
    """A prompt and the problems in it."""

    prompt: str
    problems: tuple[Problem, ...]

    @property
    def long_problems(self) -> tuple[Problem, ...]:
        """The problems that deserve a thread, in the order of the prompt."""
        return tuple(p for p in self.problems if p.is_long)

    @property
    def num_threads(self) -> int:
        """How many threads the right transcript has: none unless two problems deserve one."""
        return len(self.long_problems) if len(self.long_problems) > 1 else 0

    @property
    def held_out(self) -> bool:
        """Whether the worksheet belongs to the evaluation (never trained on)."""
        return sum(p.m * 31 + p.n * 17 for p in self.problems) % HELD_OUT_MODULUS == 0


@dataclass(frozen=True)
class Transcript:
    """The right answer to a worksheet, in the pieces that a fork and a join make of it.

    ``opening`` ends with ``</Outlines>`` when there are threads; each of ``threads`` is the text
    after its header, ending in ``</Thread>``; ``closing`` follows the join.
    """

    opening: str
    threads: tuple[str, ...]
    closing: str

    def header(self, number: int) -> str:
        """The text that the engine writes before thread ``number`` (from 1) in its own context."""
        return f"\n<Thread>\n{number}:"

    @property
    def linear(self) -> str:
        """The whole transcript as a stock client sees it."""
        if not self.threads:
            return self.opening + self.closing
        joined = "".join(f"<Thread>\n{i}:{t}" for i, t in enumerate(self.threads, 1))
        return f"{self.opening}\n{joined}\n{self.closing}"


@dataclass(frozen=True)
class Verdict:
    """What a program can say of an answer."""

    right: bool
    forked: bool
    num_threads: int
    well_formed: bool


def work(problem: Problem) -> str:
    """The long multiplication of ``problem``, ending in ``letter:product`` and a newline."""
    m = list(zip(MULTIPLICAND_LABELS, str(problem.m), strict=False))
    n = list(zip(MULTIPLIER_LABELS, str(problem.n), strict=False))
    lines = ["".join(a + b for a, b in m) + "*" + "".join(a + b for a, b in n)]
    places: dict[str, int] = {}
    for shift, (row_label, row_digit) in enumerate(reversed(n)):
        line, carry = f"{row_label}{row_digit}{PLACES[shift]}:", 0
        for i, (label, digit) in enumerate(reversed(m)):
            place = PLACES[shift + i]
            product = int(digit) * int(row_digit)
            total = product + carry
            line += f"{label}{digit}*{row_digit}={product:02d}+{carry}={total:02d}"
            if shift:
                line += f"+{place}{places[place]}"
                total += places[place]
                line += f"={total:02d}"
            carry, places[place] = divmod(total, 10)
            line += f"{place}{places[place]};"
        top = PLACES[shift + len(m)]
        places[top] = carry
        lines.append(f"{line}{top}{carry}")
    digits = sorted(places.items(), reverse=True)
    if digits[0][1] == 0:
        digits = digits[1:]
    lines.append("".join(f"{place}{digit}" for place, digit in digits))
    lines.append(f"{problem.letter}:{problem.product}")
    return "\n".join(lines) + "\n"


def triage(problems: tuple[Problem, ...]) -> str:
    """Each letter with its thread number, or, for a short problem, with its product."""
    marks, number = [], 0
    for p in problems:
        if p.is_long:
            number += 1
            marks.append(f"{p.letter}{number}")
        else:
            marks.append(f"{p.letter}{p.m}*{p.n} {p.letter}:{p.product}")
    return " ".join(marks)


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
    opening = f"<think>\n{triage(sheet.problems)}\n"
    closing = f"</think>\n{answer(sheet.problems)}"
    long = sheet.long_problems
    if len(long) < 2:
        inline = "".join(f"{p.text}\n{work(p)}" for p in long)
        return Transcript(opening + inline, (), closing)
    outlines = "".join(f"<Outline>{i}: {p.text}</Outline>\n" for i, p in enumerate(long, 1))
    opening += f"<Parallel>\n<Outlines>\n{outlines}</Outlines>"
    threads = tuple(f" {p.text}\n{work(p)}</Thread>" for p in long)
    return Transcript(opening, threads, f"</Parallel>\n{closing}")


def check(sheet: Worksheet, text: str) -> Verdict:
    """Judge a linear transcript ``text`` (think part and answer) for ``sheet``."""
    thinking, _, final = text.partition("</think>\n")
    opened, closed = thinking.count("<Thread>"), thinking.count("</Thread>")
    num_threads = len(_NUMBER_OF_THREADS.findall(thinking))
    forked = "<Parallel>" in thinking
    well_formed = (
        thinking.startswith("<think>\n")
        and opened == closed == num_threads
        and thinking.count("<Parallel>") == thinking.count("</Parallel>") <= 1
        and (num_threads > 0) == forked
    )
    return Verdict(final == answer(sheet.problems), forked, num_threads, well_formed)


def make_problem(rng: random.Random, letter: str, *, long: bool) -> Problem:
    """A random problem, of ``LONG_SIZES`` if ``long``."""
    if not long:
        return Problem(letter, rng.randint(2, 9), rng.randint(2, 9))
    sizes = list(LONG_SIZES)
    a, b = rng.choices(sizes, weights=list(LONG_SIZES.values()))[0]
    return Problem(letter, _number(rng, a), _number(rng, b))


def _number(rng: random.Random, digits: int) -> int:
    low = 10 ** (digits - 1)
    return rng.randint(max(low, 2), 10 * low - 1)


def make_worksheet(
    rng: random.Random, *, num_long: int, num_short: int = 0, held_out: bool = False
) -> Worksheet:
    """A random worksheet with its problems in random order, on the asked side of the split."""
    while True:
        kinds = [True] * num_long + [False] * num_short
        rng.shuffle(kinds)
        problems = tuple(
            make_problem(rng, letter, long=long) for letter, long in zip(LETTERS, kinds, strict=False)
        )
        body = rng.choice(SEPARATORS).join(p.text for p in problems)
        sheet = Worksheet(rng.choice(PREFIXES) + body + rng.choice(SUFFIXES), problems)
        if sheet.held_out == held_out:
            return sheet
