"""Random families of every built-in dialect, played in random orders.

What holds behind each step and at the end is checked by ``playing.py``: the tree is whole, what is known of a
branch is what it says, the budget binds, all is told once, and nothing is left.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forkjoin_scheduler.dialects.files import builtin_names
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.dialects.policies import Policies, Policy
from tests.unit.scheduler.machine.scripts import ORDERED, SPEECHES, Case, Playing, cases

SEEDS = st.integers(0, 2**32)
IN_ANY_ORDER = tuple(name for name in SPEECHES if name not in ORDERED)
#: What ends threads that do not end by themselves.
ROOMY = {
    "limits": Limits(max_forks=None, max_tokens_per_thread=100),
    "max_tokens": 2000,
    "max_model_len": 8192,
}
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def test_every_built_in_dialect_is_spoken_here():
    own = {"openings of a vote", "branches", "closed branches", "best_of", "best_of in waves"}
    assert sorted(SPEECHES.keys() - own | {"explicit"}) == builtin_names()


@pytest.mark.parametrize("name", IN_ANY_ORDER)
@settings(quick, max_examples=12)
@given(data=st.data(), seed=SEEDS, is_late=st.booleans())
def test_the_order_in_which_threads_run_changes_no_answer_and_no_join(name, data, seed, is_late):
    case = data.draw(cases((name,)))
    in_turn = Playing(case, **ROOMY)
    in_turn.in_turn()
    expected = in_turn.play
    other = Playing(case, **ROOMY, is_late=is_late)
    answers = other.at_random(seed)
    assert all(expected.answer.startswith(answer) for answer in answers)
    assert (other.play.answer, other.play.finish) == (expected.answer, expected.finish)
    assert other.play.stage.joined == expected.stage.joined
    if expected.finish == "stop":
        assert other.play.machine.stop_reason == expected.machine.stop_reason


def _policies() -> st.SearchStrategy[Policies]:
    refused = st.sampled_from([Policy.SEQUENTIAL, Policy.CLOSE_THREAD, Policy.END_REQUEST])
    unclosed = st.sampled_from([Policy.CLOSE_THREAD, Policy.END_REQUEST])
    refusals = (
        "no_outline",
        "too_many_threads",
        "too_many_forks",
        "nested_fork",
        "no_room",
        "unknown_thread",
    )
    return st.builds(
        Policies,
        **dict.fromkeys(refusals, refused),
        joined_again=st.sampled_from([Policy.REPEAT, Policy.SEQUENTIAL, Policy.END_REQUEST]),
        prompt_too_long=st.sampled_from([Policy.DROP, Policy.END_REQUEST]),
        thread_eos=unclosed,
        thread_length=unclosed,
    )


@st.composite
def _hard_pressed(draw) -> tuple[Case, dict]:
    """A case under limits that bind."""
    case = draw(cases())
    if case.dialect is not None:
        update = {"policies": draw(_policies()), "min_room": 1, "min_left": 0, "reserve": 0}
        if draw(st.booleans()) and case.dialect.join.waits:
            update["join"] = case.dialect.join.model_copy(update={"when": "first"})
        case.dialect = case.dialect.model_copy(update=update)
    prompt = len(case.prompt)
    limits = Limits(
        max_tokens_per_thread=draw(st.none() | st.integers(1, 60)),
        max_total_tokens=draw(st.none() | st.integers(1, 200)),
        max_forks=draw(st.none() | st.integers(1, 4)),
    )
    return case, {
        "limits": limits,
        "max_tokens": draw(st.integers(1, 300)),
        "max_model_len": prompt + draw(st.integers(2, 500)),
        "is_late": draw(st.booleans()),
    }


@settings(quick, max_examples=300)
@given(pressed=_hard_pressed(), seed=SEEDS, cancels=st.booleans())
def test_whatever_comes_between_a_family_ends_once_and_whole(pressed, seed, cancels):
    case, request = pressed
    playing = Playing(case, **request)
    answers = playing.at_random(seed, cancels=cancels)
    play = playing.play
    assert all(play.answer.startswith(answer) for answer in answers)
    assert play.finish in ("stop", "length")
    assert play.machine.family.num_generated <= play.machine.family.max_tokens
    play.stage.check_ended()
    assert play.machine.transcripts[play.root].release() == [], "all of the answer has left"
