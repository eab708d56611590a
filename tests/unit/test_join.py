from __future__ import annotations

import pytest

from forkjoin_scheduler.dialect import Policy
from forkjoin_scheduler.family import Branch, BranchState, ThreadEnd
from forkjoin_scheduler.fork import plan_fork
from forkjoin_scheduler.join import plan_join


@pytest.fixture
def threads(dialect, tokenizer):
    text = "<Outlines><Outline>1: x</Outline><Outline>2: y</Outline></Outlines>"
    plan = plan_fork(dialect, dialect.limits, tokenizer.encode(text), tokenizer)
    return [
        Branch(f"r#{i}", None, p, i, i, BranchState.ENDED, ThreadEnd.STOP, tokenizer.encode(f"t{i}</Thread>"))
        for i, p in enumerate(plan.threads)
    ]


def test_the_joined_text_has_no_space_between_threads_and_the_join_text_behind(dialect, tokenizer, threads):
    plan = plan_join(dialect, threads, tokenizer)
    assert tokenizer.decode(list(plan.token_ids)) == "\n<Thread>\n1:t0</Thread><Thread>\n2:t1</Thread>\n"
    assert plan.end is None


@pytest.mark.parametrize("end", [ThreadEnd.EOS, ThreadEnd.LENGTH])
def test_a_thread_that_did_not_close_is_closed_and_the_block_too(dialect, tokenizer, threads, end):
    threads[1].end = end
    plan = plan_join(dialect, threads, tokenizer)
    text = tokenizer.decode(list(plan.token_ids))
    assert text.endswith("\n</Thread>\n</Parallel>")
    assert plan.end is end


@pytest.mark.parametrize("end", [ThreadEnd.EOS, ThreadEnd.LENGTH])
def test_a_policy_that_closes_the_thread_lets_the_family_go_on(dialect, tokenizer, threads, end):
    closing = {"thread_eos": Policy.CLOSE_THREAD, "thread_length": Policy.CLOSE_THREAD}
    dialect = dialect.model_copy(update={"policies": dialect.policies.model_copy(update=closing)})
    threads[0].token_ids, threads[0].end = tokenizer.encode("t0!"), end
    plan = plan_join(dialect, threads, tokenizer)
    kept = "t0" if end is ThreadEnd.EOS else "t0!"
    expected = f"\n<Thread>\n1:{kept}\n</Thread><Thread>\n2:t1</Thread>\n"
    assert (tokenizer.decode(list(plan.token_ids)), plan.end) == (expected, None)


@pytest.mark.parametrize("end", [ThreadEnd.STOP, ThreadEnd.EOS, ThreadEnd.LENGTH])
@pytest.mark.parametrize("text", ["x", "xyz"])
def test_what_thread_one_has_computed_is_a_prefix_of_the_join_however_it_ended(
    dialect, tokenizer, threads, end, text
):
    first = threads[0]
    first.token_ids, first.end = tokenizer.encode(text), end
    plan = plan_join(dialect, threads, tokenizer)
    computed = [*first.plan.header_ids, *first.token_ids[:-1]]
    assert list(plan.token_ids[: len(computed)]) == computed


def test_the_first_thread_in_outline_order_says_why_the_request_ends(dialect, tokenizer, threads):
    threads[0].end, threads[1].end = ThreadEnd.LENGTH, ThreadEnd.EOS
    assert plan_join(dialect, threads, tokenizer).end is ThreadEnd.LENGTH


def test_the_closing_is_the_part_behind_the_last_thread(dialect, tokenizer, threads):
    plan = plan_join(dialect, threads, tokenizer)
    assert tokenizer.decode(list(plan.closing_ids)) == "\n"
    threads[1].end = ThreadEnd.LENGTH
    plan = plan_join(dialect, threads, tokenizer)
    assert tokenizer.decode(list(plan.closing_ids)) == "\n</Parallel>"
    assert plan.token_ids[-len(plan.closing_ids) :] == plan.closing_ids
