from __future__ import annotations

import pytest

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.fork import ForkPlan, Refusal, plan_fork

BLOCK = "<Outlines>\n<Outline>1: x</Outline>\n<Outline> 2 : y z</Outline>\n</Outlines>"


def _plan(dialect, tokenizer, text, limits=None, num_forks=0):
    return plan_fork(dialect, limits or dialect.limits, num_forks, tokenizer.encode(text), tokenizer)


def test_each_outline_becomes_a_thread_with_its_title_and_headers(dialect, tokenizer):
    plan = _plan(dialect, tokenizer, f"<Outlines><Outline>9: old</Outline></Outlines>{BLOCK}")
    assert isinstance(plan, ForkPlan)
    assert [(t.number, t.title) for t in plan.threads] == [("1", "x"), ("2", "y z")]
    headers = [tokenizer.decode(list(t.header_ids)) for t in plan.threads]
    joined = [tokenizer.decode(list(t.joined_header_ids)) for t in plan.threads]
    assert headers == ["\n<Thread>\n1:", "\n<Thread>\n2:"]
    assert joined == ["\n<Thread>\n1:", "<Thread>\n2:"]


def test_duplicates_are_dropped_and_counted_and_the_first_title_stays(dialect, tokenizer):
    text = "<Outlines><Outline>1: a</Outline><Outline>1: b</Outline></Outlines>"
    plan = _plan(dialect, tokenizer, text)
    assert isinstance(plan, ForkPlan)
    assert ([t.title for t in plan.threads], plan.num_duplicates) == (["a"], 1)


@pytest.mark.parametrize(
    ("text", "limits", "num_forks", "reason"),
    [
        ("</Outlines>", Limits(), 0, "no_outline"),
        ("<Outlines>1: x</Outlines>", Limits(), 0, "no_outline"),
        (BLOCK, Limits(max_threads_per_fork=1), 0, "too_many_threads"),
        (BLOCK, Limits(max_forks=2), 2, "too_many_forks"),
    ],
    ids=["trigger_alone", "no_tag", "threads", "forks"],
)
def test_a_fork_is_refused_with_its_reason(dialect, tokenizer, text, limits, num_forks, reason):
    plan = _plan(dialect, tokenizer, text, limits, num_forks)
    assert isinstance(plan, Refusal)
    assert plan.reason == reason
