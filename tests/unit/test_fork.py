from __future__ import annotations

import pytest

from forkjoin_scheduler.dialect import Limits, Policy, load
from forkjoin_scheduler.fork import ForkPlan, Refusal, plan_fork

BLOCK = "<Outlines>\n<Outline>1: x</Outline>\n<Outline> 2 : y z</Outline>\n</Outlines>"


def _plan(dialect, tokenizer, text, limits=None, **facts):
    return plan_fork(dialect, limits or dialect.limits, tokenizer.encode(text), tokenizer, **facts)


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
    plan = _plan(dialect, tokenizer, text, limits, num_forks=num_forks)
    assert isinstance(plan, Refusal)
    assert plan.reason == reason


@pytest.mark.parametrize(
    ("inside", "numbers"),
    [
        ("<Outline>1: x\n<Outline>2: y", ["1", "2"]),
        ("<Outline>1: x</Outline><Outline>2", ["1"]),
        ("<Outline>: x</Outline><Outline>2: y</Outline>", ["2"]),
        ("<Outline>2: x</Outline><Outline>1: y</Outline><Outline>2: z</Outline>", ["2", "1"]),
        ("<Outline>1.2: x</Outline><Outline>1.10: y</Outline>", ["1.2", "1.10"]),
        ("<Outline>\n 1 \n:x</Outline>", ["1"]),
    ],
    ids=["unclosed", "cut_off", "no_number", "order_of_writing", "nested_numbers", "spaces"],
)
def test_malformed_outlines_fork_into_those_that_can_be_read(dialect, tokenizer, inside, numbers):
    plan = _plan(dialect, tokenizer, f"<Outlines>{inside}</Outlines>")
    assert isinstance(plan, ForkPlan)
    assert [t.number for t in plan.threads] == numbers


def test_an_unclosed_outlines_title_ends_at_the_next_tag(dialect, tokenizer):
    plan = _plan(dialect, tokenizer, "<Outlines><Outline>1: a b\n<Outline>2: c</Outlines>")
    assert [t.title for t in plan.threads] == ["a b", "c"]


def test_outlines_before_the_opening_tag_do_not_count(dialect, tokenizer):
    plan = _plan(dialect, tokenizer, "<Outline>1: x</Outline><Outlines><Outline>2: y</Outline></Outlines>")
    assert [t.number for t in plan.threads] == ["2"]


def test_duplicates_do_not_count_towards_the_limit_on_threads(dialect, tokenizer):
    text = "<Outlines>" + "<Outline>1: x</Outline>" * 5 + "</Outlines>"
    plan = _plan(dialect, tokenizer, text, Limits(max_threads_per_fork=1))
    assert isinstance(plan, ForkPlan)
    assert (len(plan.threads), plan.num_duplicates) == (1, 4)


@pytest.mark.parametrize("width", [1, 50])
def test_as_many_threads_as_the_limit_allows_are_forked(dialect, tokenizer, width):
    text = "".join(f"<Outline>{n}: x</Outline>" for n in range(width))
    plan = _plan(dialect, tokenizer, f"<Outlines>{text}</Outlines>", Limits(max_threads_per_fork=width))
    assert isinstance(plan, ForkPlan)
    assert len(plan.threads) == width


@pytest.mark.parametrize("reason", ["no_outline", "too_many_threads", "too_many_forks"])
def test_a_refusal_carries_the_policy_that_the_dialect_names_for_it(dialect, tokenizer, reason):
    policies = dialect.policies.model_copy(update={reason: Policy.END_REQUEST})
    dialect = dialect.model_copy(update={"policies": policies})
    text = "<Outlines></Outlines>" if reason == "no_outline" else BLOCK
    limits = Limits(max_threads_per_fork=1, max_forks=0 if reason == "too_many_forks" else 1)
    assert _plan(dialect, tokenizer, text, limits) == Refusal(reason, Policy.END_REQUEST)


def test_a_trigger_does_not_fork_into_the_outlines_of_an_earlier_fork(dialect, tokenizer):
    plan = _plan(dialect, tokenizer, f"{BLOCK}some text</Outlines>")
    assert plan == Refusal("no_outline", Policy.SEQUENTIAL)


@pytest.mark.parametrize(("depth", "forks"), [(0, True), (1, True), (2, False)])
def test_a_thread_forks_as_deep_as_the_dialect_says(dialect, tokenizer, depth, forks):
    nested = dialect.model_copy(update={"max_depth": 2})
    plan = _plan(nested, tokenizer, BLOCK, depth=depth)
    assert isinstance(plan, ForkPlan) is forks
    assert forks or plan == Refusal("nested_fork", Policy.SEQUENTIAL)


def test_a_fork_that_leaves_a_thread_no_token_is_refused(dialect, tokenizer):
    context = len(tokenizer.encode(BLOCK))
    header = len(tokenizer.encode("\n<Thread>\n1:"))
    assert isinstance(_plan(dialect, tokenizer, BLOCK, max_model_len=context + header + 1), ForkPlan)
    refused = _plan(dialect, tokenizer, BLOCK, max_model_len=context + header)
    assert refused == Refusal("no_room", Policy.SEQUENTIAL)


def test_duplicates_refuse_the_fork_where_the_dialect_says_so(dialect, tokenizer):
    policies = dialect.policies.model_copy(update={"duplicate_outline": Policy.SEQUENTIAL})
    strict = dialect.model_copy(update={"policies": policies})
    text = "<Outlines><Outline>1: a</Outline><Outline>1: b</Outline></Outlines>"
    assert _plan(strict, tokenizer, text) == Refusal("duplicate_outline", Policy.SEQUENTIAL)


@pytest.mark.parametrize(("limit", "width"), [(None, 2), (8, 2), (1, 1)])
def test_without_outlines_as_many_threads_fork_as_the_dialect_is_wide(byte_tokenizer, limit, width):
    parallel = load("parallel-r1")
    tokenizer = byte_tokenizer(list(parallel.control_tokens))
    plan = _plan(parallel, tokenizer, "x<Parallel>", Limits(max_threads_per_fork=limit))
    assert isinstance(plan, ForkPlan)
    assert [tokenizer.decode(list(t.header_ids)) for t in plan.threads] == ["<Path>"] * width
