"""Malformed output in the stitched dialects: their policies, never an error or a lost block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from forkjoin_scheduler.dialect_files import load
from tests.engine.renamed import MULTIVERSE, NPR, with_tokens

pytestmark = pytest.mark.engine


@dataclass
class Format:
    """A dialect's published format, and an engine that speaks it."""

    engine: Any
    tags: tuple[str, str, str, str]  # what opens the outlines, the trigger, what opens and ends a thread
    outline: str
    join: str
    close_block: str

    def outlines(self, *numbers: Any) -> str:
        return self.tags[0] + "\n" + "".join(self.outline.format(n) for n in numbers) + self.tags[1]

    def joined(self, root: str, threads: dict[Any, str], behind: str) -> str:
        block = "".join(f"{self.tags[2]}\n{n}:{text}\n" for n, text in threads.items())
        return f"{root}\n{block}{behind}"

    def run(self, root: str, threads: dict[Any, str], after: str = "end", **options: Any) -> Any:
        encode = self.engine.tokenizer.encode
        script = [[[], encode(root)], [encode(self.join), encode(after)]]
        script += [[encode(f"{self.tags[2]}\n{n}:"), encode(text)] for n, text in threads.items()]
        params = self.engine.params(extra_args={"script": script, "eos": self.engine.eos}, **options)
        (answer,) = self.engine.run([self.engine.prompt("q")], params)
        assert self.engine.snapshot() == self.engine.baseline
        return answer


@pytest.fixture(scope="module")
def multiverse(tmp_path_factory):
    from tests.engine.harness import Engine

    engine = Engine(load("multiverse"), with_tokens(tmp_path_factory.mktemp("multiverse"), MULTIVERSE))
    tags = ("<Goal>", "</Goal>", "<Path>", "</Path>")
    return Format(engine, tags, "<Outline>\n{}: part\n</Outline>\n", "<Conclusion>\n", "</Parallel>")


@pytest.fixture(scope="module")
def npr(tmp_path_factory):
    from tests.engine.harness import Engine

    engine = Engine(load("npr"), with_tokens(tmp_path_factory.mktemp("npr"), NPR))
    tags = ("<guideline>", "</guideline>", "<step>", "</step>")
    return Format(engine, tags, "<plan>{}: part</plan>\n", "<takeaway>\n", "</takeaway>")


@pytest.fixture(params=["multiverse", "npr"])
def spoken(request):
    return request.getfixturevalue(request.param)


def _reasons(events):
    return [(e["reason"], e["policy"]) for e in events("refused")]


def test_duplicates_start_no_thread_and_gaps_keep_their_numbers(spoken):
    end = spoken.tags[3]
    root = spoken.outlines(1, 4, 1)
    answer = spoken.run(root, {1: "a" + end, 4: "d" + end})
    assert answer.text == spoken.joined(root, {1: "a" + end, 4: "d" + end}, spoken.join + "end")


@pytest.mark.parametrize("case", ["nothing_between", "no_opening", "trigger_alone", "second_trigger"])
def test_without_an_outline_multiverse_goes_on_and_npr_ends(multiverse, npr, events, case):
    for spoken in (multiverse, npr):
        opening, trigger = spoken.tags[:2]
        root = {
            "nothing_between": f"{opening}\n{trigger}",
            "no_opening": f"1: a{trigger}",
            "trigger_alone": trigger,
            "second_trigger": f"{opening}no{trigger}",
        }[case]
        answer = spoken.run(root + "on", {})
        assert answer.text == (root + "on" if spoken is multiverse else root + spoken.close_block)
    assert _reasons(events) == [("no_outline", "sequential"), ("no_outline", "end_request")]


def test_over_the_limit_of_threads_multiverse_goes_on_and_npr_ends(multiverse, npr, events):
    for spoken in (multiverse, npr):
        root = spoken.outlines(1, 2, 3)
        answer = spoken.run(root + "on", {}, forkjoin={"max_threads_per_fork": 2})
        assert answer.text == (root + "on" if spoken is multiverse else root + spoken.close_block)
    assert [r for r, _ in _reasons(events)] == ["too_many_threads"] * 2


def test_a_thread_that_ends_by_eos_is_closed_and_joined_with_the_others(spoken):
    end = spoken.tags[3]
    root = spoken.outlines(1, 2, 3)
    answer = spoken.run(root, {1: "aa", 2: "b" + end, 3: ""})
    closed = {1: f"aa\n{end}", 2: "b" + end, 3: f"\n{end}"}
    assert answer.text == spoken.joined(root, closed, spoken.join + "end")


def test_a_thread_that_runs_out_of_tokens_is_closed_and_joined(spoken):
    end = spoken.tags[3]
    root = spoken.outlines(1, 2)
    answer = spoken.run(root, {1: "a" * 30 + end, 2: "b" + end}, forkjoin={"max_tokens_per_thread": 7})
    assert answer.text == spoken.joined(root, {1: "a" * 7 + f"\n{end}", 2: "b" + end}, spoken.join + "end")


def test_a_policy_may_end_the_request_at_the_join_instead(spoken):
    from forkjoin_scheduler.bound import BoundDialect

    scheduler, end = spoken.engine.scheduler, spoken.tags[3]
    before = scheduler._spoken
    fields = before.dialect.model_dump()
    fields["policies"] |= {"thread_eos": "end_request"}
    scheduler._spoken = BoundDialect.bind(
        type(before.dialect).model_validate(fields), spoken.engine.tokenizer
    )
    root = spoken.outlines(1, 2)
    answer = spoken.run(root, {1: "aa", 2: "b" + end})
    scheduler._spoken = before
    assert answer.text == spoken.joined(root, {1: f"aa\n{end}", 2: "b" + end}, spoken.close_block)
    assert answer.finish_reason == "stop"


def test_stray_tags_are_plain_text(spoken):
    opening, _, thread, end = spoken.tags
    root = f"{end}{thread}" + spoken.outlines(1, 2)
    inside = f"x{thread}{opening}y{end}"
    answer = spoken.run(root, {1: inside, 2: "b" + end})
    assert answer.text == spoken.joined(root, {1: inside, 2: "b" + end}, spoken.join + "end")


def test_a_fork_inside_a_step_of_npr_is_plain_text(npr, events):
    root, inner = npr.outlines(1, 2), npr.outlines("1.1")
    answer = npr.run(root, {1: f"a{inner}b</step>", 2: "c</step>"})
    assert answer.text == npr.joined(root, {1: f"a{inner}b</step>", 2: "c</step>"}, "<takeaway>\nend")
    assert _reasons(events) == [("nested_fork", "sequential")]


def test_the_sixth_level_of_multiverse_does_not_fork(multiverse, events):
    levels = ["1"]
    for _ in range(5):
        levels.append(levels[-1] + ".1")
    threads = {n: f"l{multiverse.outlines(n + '.1')}" for n in levels[:4]}
    threads |= {levels[4]: f"l{multiverse.outlines(levels[5])}plain</Path>"}
    # behind each inner join the thread writes its end
    answer = multiverse.run(multiverse.outlines(1), threads, after="e</Path>")
    assert _reasons(events) == [("nested_fork", "sequential")]
    assert answer.text.count("<Conclusion>\n") == 5


@pytest.mark.parametrize("num_tokens", [60, 75, 90])
def test_a_budget_that_runs_out_in_a_fork_is_spent_to_the_last_token(spoken, events, num_tokens):
    end = spoken.tags[3]
    root = spoken.outlines(1, 2)
    answer = spoken.run(root, {1: "a" * 90 + end, 2: "b" * 90 + end}, max_tokens=num_tokens)
    assert answer.finish_reason == "length"
    assert events("family_ended")[-1]["total_tokens"] == num_tokens
    assert [(e["reason"], e["policy"]) for e in events("limited")] == [("total_tokens", "end_request")]


def test_threads_that_would_not_fit_behind_one_another_end_the_request(multiverse, events):
    root = multiverse.outlines(1, 2, 3)
    long = {n: "abc"[n - 1] * 1500 + "</Path>" for n in (1, 2, 3)}
    answer = multiverse.run(root, long, max_tokens=8000)
    assert answer.finish_reason == "length"
    assert [e["reason"] for e in events("limited")] == ["joined_too_long"]


def test_a_stop_token_in_a_stitched_thread_ends_the_answer_there(spoken):
    stop = spoken.engine.tokenizer.token_id("Z")
    end = spoken.tags[3]
    root = spoken.outlines(1, 2, 3)
    threads = {1: "a" + end, 2: "bZ", 3: "c" * 20 + end}
    answer = spoken.run(root, threads, stop_token_ids=[stop])
    assert answer.text == spoken.joined(root, {1: "a" + end}, f"{spoken.tags[2]}\n2:b")
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
