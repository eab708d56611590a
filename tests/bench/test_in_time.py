from __future__ import annotations

import pytest

from forkjoin_bench.comparison.in_time import kept_to
from forkjoin_bench.comparison.traffic import Outcome
from forkjoin_bench.inputs.script import Compiler
from forkjoin_bench.inputs.traces import Family
from forkjoin_bench.simulator.results.measures import Slo
from forkjoin_bench.systems.base import Answer

SLO = Slo(ttft_s=2.0, token_s=0.5)


def _answer(first: float, ended: float, *, is_right: bool = True) -> Answer:
    return Answer("f", 100.0, 100.0 + ended, [100.0 + first], is_right=is_right)


@pytest.fixture
def plain(tokenizer):
    return Compiler(tokenizer).compile(Family("plain", "ask:", ("abcde",)))


def test_a_family_is_judged_by_its_longest_path_and_a_plain_request_by_all_its_tokens(family, plain):
    last = 0.5 * (family.num_critical - 1)
    answers = [_answer(1, 1 + last), _answer(1, 1.1 + last), _answer(2, 4), _answer(2, 4.1)]
    values = kept_to(SLO, Outcome(answers, 8.0), [family, family, plain, plain])
    assert values == {
        "in_time": 0.5,
        "good_per_s": 0.25,
        "plain_p95_ms": pytest.approx(1e3 * 2.1 / 4),
        "family_s": pytest.approx(1.05 + last),
    }


def test_an_answer_that_is_wrong_late_or_never_began_is_not_in_time(plain):
    never = Answer("f", 100.0, 101.0, is_right=False, error="ServerFailed")
    answers = [_answer(1, 2, is_right=False), _answer(2.1, 2.2), never, _answer(1, 2)]
    values = kept_to(SLO, Outcome(answers, 4.0), [plain] * 4)
    assert values["in_time"] == 0.25
    assert "family_s" not in values
