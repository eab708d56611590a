from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.multiply import PLACES, long_multiplication
from training.prompts import make_chain, make_worksheet
from training.task import Problem, Worksheet, check, transcript, work

problems = st.one_of(
    st.builds(Problem, st.sampled_from("abcdefghi"), st.integers(10, 9999), st.integers(2, 999)),
    st.builds(Problem, st.sampled_from("abcdefghi"), st.integers(10000, 99999), st.integers(2, 99)),
)


@st.composite
def sheets(draw):
    levels = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3) | st.just([0]))
    num_short = draw(st.integers(int(levels == [0]), 9 - sum(levels)))
    return make_chain(random.Random(draw(st.integers(0, 2**32))), levels=levels, num_short=num_short)


@given(sheets())
def test_the_right_transcript_is_judged_right(sheet):
    verdict = check(sheet, transcript(sheet).linear)
    assert verdict.right
    assert verdict.well_formed
    assert (verdict.num_forks, verdict.num_threads) == (sheet.num_forks, sheet.num_threads)


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
        so_far = sum(d * 10 ** PLACES.index(p) for p, d in places.items())
        assert so_far == problem.m * int(digits[: row + 1][::-1])


@given(problems)
def test_the_work_ends_in_the_product(problem):
    *_, places, last = work(problem).splitlines()
    assert "".join(re.findall("[0-9]", places)) == str(problem.m * problem.n)
    assert last == f"{problem.letter}:{problem.m * problem.n}"


@pytest.mark.parametrize(
    ("factors", "num_threads"),
    [
        ([(3, 4), (5, 6)], []),
        ([(12, 4), (5, 6)], []),
        ([(12, 4), (5, 6), (4, 13)], [2]),
        ([(12, 4), (48, 6, "a"), (48, 7, "a")], [2]),
        ([(12, 4), (5, 13), (48, 6, "a"), (48, 7, "a"), (65, 8, "b")], [2, 3]),
        ([(12, 4), (48, 6, "a"), (288, 13, "b")], []),
    ],
    ids=["all_short", "one_long", "two_long", "two_that_wait_for_one", "three_that_wait", "a_chain"],
)
def test_a_level_of_two_long_problems_forks_with_a_thread_for_each(factors, num_threads):
    sheet = Worksheet("", tuple(Problem("abcde"[i], *factors) for i, factors in enumerate(factors)))
    assert [len(fork.threads) for fork in transcript(sheet).forks] == num_threads
    assert transcript(sheet).linear.count("<Thread>") == sheet.num_threads == sum(num_threads)


@pytest.mark.parametrize("levels", [(3,), (2, 3), (2, 1, 2)])
def test_the_joined_text_is_what_the_engine_makes_of_the_threads(levels):
    for fork in transcript(make_chain(random.Random(1), levels=levels)).forks:
        contexts = ["".join(fork.thread(i)) for i in range(len(fork.threads))]
        joined = contexts[0] + "".join(c.removeprefix("\n") for c in contexts[1:]) + "\n"
        assert fork.joined == fork.opening + joined


def test_what_waits_names_the_value_that_it_waited_for():
    sheet = Worksheet(
        "", (Problem("a", 48, 36), Problem("b", 75, 92), Problem("c", 1728, 27, "a"), Problem("d", 7, 8))
    )
    first, rest = transcript(sheet).linear.split("</Parallel>\n")
    assert first.startswith("<think>\na1 b2 ca? d7*8 d:56\n<Parallel>")
    assert rest.startswith("ca3\nc=a*27 a:1728\np1q7r2s8*x2y7\n")


@pytest.mark.parametrize("held_out", [True, False])
def test_a_worksheet_lies_on_the_asked_side_of_the_split(held_out):
    rng = random.Random(2)
    assert all(make_worksheet(rng, num_long=2, held_out=held_out).held_out is held_out for _ in range(20))


@pytest.mark.parametrize("levels", [(9,), (4, 5), (2, 2, 2), (1, 1, 3)])
def test_what_waits_stands_behind_what_it_waits_for_and_has_its_product(levels):
    for seed in range(50):
        sheet = make_chain(random.Random(seed), levels=levels, num_short=9 - sum(levels))
        seen: dict[str, int] = {}
        for p in sheet.problems:
            assert p.of is None or seen[p.of] == p.m
            seen[p.letter] = p.product
        assert tuple(map(len, sheet.levels)) == levels


def test_more_problems_than_letters_are_refused():
    with pytest.raises(ValueError, match="expected at most 9 problems, got 10"):
        make_chain(random.Random(1), levels=(5, 4), num_short=1)


@pytest.mark.parametrize(("m", "n"), [(100000, 2), (12345, 678), (12, 3456)])
def test_factors_without_labels_are_refused(m, n):
    with pytest.raises(ValueError, match=f"together up to 7, got {m}"):
        long_multiplication(m, n)
