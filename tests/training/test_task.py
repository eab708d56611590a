from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.task import Problem, Worksheet, check, make_worksheet, transcript, work

problems = st.builds(Problem, st.sampled_from("abcdefg"), st.integers(10, 9999), st.integers(2, 999))


@st.composite
def sheets(draw):
    num_long, num_short = draw(st.integers(0, 4)), draw(st.integers(0, 3))
    rng = random.Random(draw(st.integers(0, 2**32)))
    return make_worksheet(rng, num_long=num_long, num_short=num_short or not num_long)


@given(sheets())
def test_the_right_transcript_is_judged_right(sheet):
    verdict = check(sheet, transcript(sheet).linear)
    assert verdict.right
    assert verdict.well_formed
    assert (verdict.forked, verdict.num_threads) == (sheet.num_threads > 0, sheet.num_threads)


@given(sheets())
def test_a_wrong_last_digit_is_judged_wrong(sheet):
    text = transcript(sheet).linear
    assert not check(sheet, text[:-1] + str((int(text[-1]) + 1) % 10)).right


@given(sheets().filter(lambda s: s.num_threads), st.sampled_from(["<Thread>", "</Thread>", "</Parallel>"]))
def test_a_missing_tag_is_judged_malformed(sheet, tag):
    assert not check(sheet, transcript(sheet).linear.replace(tag, "", 1)).well_formed


@given(problems)
def test_every_sum_that_the_work_states_is_true(problem):
    lines = work(problem).splitlines()
    for line in lines[1:-2]:
        for cell in re.findall(
            r"(\d)\*(\d)=([0-9]+)\+(\d)=([0-9]+)(?:\+[A-G](\d)=([0-9]+))?[A-G](\d);", line
        ):
            a, b, product, carry, total, above, grand, written = (int(x or 0) for x in cell)
            assert product == a * b
            assert total == product + carry
            assert grand in (0, total + above)
            assert written == (grand or total) % 10
        assert line.count(";") == len(str(problem.m))


@given(problems)
def test_the_accumulator_holds_the_partial_product_after_every_row(problem):
    lines, places = work(problem).splitlines(), {}
    digits = str(problem.n)[::-1]
    for row, line in enumerate(lines[1:-2]):
        places |= {p: int(d) for p, d in re.findall(r"([A-G])(\d)(?:;|$)", line)}
        so_far = sum(d * 10 ** "ABCDEFG".index(p) for p, d in places.items())
        assert so_far == problem.m * int(digits[: row + 1][::-1])


@given(problems)
def test_the_work_ends_in_the_product(problem):
    *_, places, last = work(problem).splitlines()
    assert "".join(re.findall("[0-9]", places)) == str(problem.m * problem.n)
    assert last == f"{problem.letter}:{problem.m * problem.n}"


@pytest.mark.parametrize(
    ("factors", "num_threads"),
    [([(3, 4), (5, 6)], 0), ([(12, 4), (5, 6)], 0), ([(12, 4), (5, 6), (4, 13)], 2)],
    ids=["all_short", "one_long", "two_long"],
)
def test_it_forks_when_two_problems_are_long_with_a_thread_for_each(factors, num_threads):
    sheet = Worksheet("", tuple(Problem("abc"[i], m, n) for i, (m, n) in enumerate(factors)))
    assert len(transcript(sheet).threads) == num_threads
    assert transcript(sheet).linear.count("<Thread>") == num_threads


def test_the_linear_transcript_is_what_the_engine_makes_of_the_threads():
    sheet = make_worksheet(random.Random(1), num_long=3)
    parts = transcript(sheet)
    contexts = [parts.header(i) + t for i, t in enumerate(parts.threads, 1)]
    joined = contexts[0] + "".join(c.removeprefix("\n") for c in contexts[1:]) + "\n"
    assert parts.linear == parts.opening + joined + parts.closing


@pytest.mark.parametrize("held_out", [True, False])
def test_a_worksheet_lies_on_the_asked_side_of_the_split(held_out):
    rng = random.Random(2)
    assert all(make_worksheet(rng, num_long=2, held_out=held_out).held_out is held_out for _ in range(20))
