from __future__ import annotations

import pytest

from forkjoin_scheduler.family import Thread, ThreadEnd
from forkjoin_scheduler.fork import plan_fork
from forkjoin_scheduler.join import plan_join


@pytest.fixture
def threads(dialect, tokenizer):
    text = "<Outlines><Outline>1: x</Outline><Outline>2: y</Outline></Outlines>"
    plan = plan_fork(dialect, dialect.limits, 0, tokenizer.encode(text), tokenizer)
    return [
        Thread(i, i, p, tokenizer.encode(f"t{i}</Thread>"), ThreadEnd.STOP)
        for i, p in enumerate(plan.threads)
    ]


def test_the_joined_text_has_no_space_between_threads_and_the_join_text_behind(dialect, tokenizer, threads):
    plan = plan_join(dialect, threads, tokenizer)
    assert tokenizer.decode(list(plan.token_ids)) == "\n<Thread>\n1:t0</Thread><Thread>\n2:t1</Thread>\n"
    assert plan.end is None


def test_all_of_thread_one_but_its_last_token_is_adopted(dialect, tokenizer, threads):
    plan = plan_join(dialect, threads, tokenizer)
    assert tokenizer.decode(list(plan.token_ids[: plan.num_adopted])) == "\n<Thread>\n1:t0"


@pytest.mark.parametrize("end", [ThreadEnd.EOS, ThreadEnd.LENGTH])
def test_a_thread_that_did_not_close_is_closed_and_the_block_too(dialect, tokenizer, threads, end):
    threads[1].end = end
    plan = plan_join(dialect, threads, tokenizer)
    text = tokenizer.decode(list(plan.token_ids))
    assert text.endswith("\n</Thread>\n</Parallel>")
    assert plan.end is end
