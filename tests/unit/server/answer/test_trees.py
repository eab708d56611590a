"""Trees of the answers to a request over HTTP: gathered from vLLM's outputs, and put beside their ends."""

from __future__ import annotations

import asyncio
import json
import math
from types import SimpleNamespace

import pytest
from vllm import SamplingParams
from vllm.logprobs import Logprob

from forkjoin import Tree
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import (
    Forked,
    NewThread,
    SegmentBegan,
    SegmentWrote,
    ThreadEnded,
)
from forkjoin_scheduler.publish.feed import FEEDS
from forkjoin_server.answer.answer_fields import ForkJoinJoined, ForkJoinSegment, ForkJoinTree
from forkjoin_server.answer.trees import TreePresenter, Trees, as_json, with_logprobs
from forkjoin_server.answer.weaver import PassThrough
from forkjoin_server.trees import sequential

KEY = "fj" + "0" * 32
PARAMS = SamplingParams(seed=5, logprobs=0)


def told(index, token_ids, finish_reason=None, logprob=-0.5):
    rows = [{token: Logprob(logprob)} for token in token_ids]
    return SimpleNamespace(
        index=index, token_ids=token_ids, logprobs=rows, finish_reason=finish_reason, weight_versions=None
    )


def output(*completions):
    return SimpleNamespace(prompt_token_ids=[1, 2], outputs=list(completions))


def gather(trees, request_id, *outputs, params=PARAMS):
    """What comes out, each with the indices whose trees are there by then. A function is called, as vLLM runs."""

    async def given():
        for one in outputs:
            if callable(one):
                one()
            else:
                yield one

    async def all_of():
        return [(one, set(trees.ended)) async for one in trees.gathering(request_id, params, given())]

    return asyncio.run(all_of())


def test_an_answer_that_did_not_fork_is_one_segment_of_all_its_outputs():
    trees, outputs = Trees(KEY), [output(told(0, [7])), output(told(0, [8], "stop"))]
    assert gather(trees, f"chatcmpl-{KEY}", *outputs) == [(outputs[0], set()), (outputs[1], {0})]
    (segment,) = trees.ended[0]["segments"]
    assert (segment["token_ids"], segment["num_injected"]) == ([1, 2, 7, 8], 2)
    assert (segment["logprobs"], segment["seed"]) == ([None, None, -0.5, -0.5], 5)
    assert trees.ended[0]["answer_ids"] == [7, 8]


def test_segments_that_the_engine_tells_of_are_of_their_own_answer():
    def tells():
        FEEDS.emit("r", 1, [SegmentBegan(segment=0, index=-1, token_ids=[1, 2], position=0)])
        FEEDS.emit("r", 1, [SegmentWrote(segment=0, token_ids=[9], logprobs=[-0.25])])
        FEEDS.emit("another", 1, [SegmentBegan(segment=1, index=0, token_ids=[6], position=3)])

    trees = Trees(KEY, num_choices=2, num_answers=2)
    gather(trees, "r", tells, output(told(0, [7], "stop"), told(1, [8], "length")))
    first, second = (trees.ended[index]["segments"][0] for index in range(2))
    assert (first["token_ids"], first["seed"]) == ([1, 2, 7], 5)
    assert (second["token_ids"], second["finish_reason"]) == ([1, 2, 9], "length")


def chunk():
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}


@pytest.mark.parametrize(
    ("closes_threads", "expected"), [(False, [[], [], [2], [0], []]), (True, [[], [], [], [0, 2], []])]
)
def test_segments_are_shown_as_they_end_and_the_tree_has_the_others(closes_threads, expected):
    def begins():
        FEEDS.emit("r", 0, [SegmentBegan(segment=0, index=-1, token_ids=[1, 2], position=0)])
        FEEDS.emit("r", 0, [SegmentWrote(segment=0, token_ids=[9])])
        threads = [NewThread(index=n, number=str(n), title=f"T{n}") for n in range(2)]
        FEEDS.emit("r", 0, [Forked(parent_index=-1, threads=threads, shared_tokens=3)])
        for n in range(2):
            began = SegmentBegan(segment=n + 1, index=n, token_ids=[5], position=3, parent=0, forked_by=0)
            FEEDS.emit("r", 0, [began])

    def ends():  # the end is told before what was written in the same step
        ended = ThreadEnded(index=1, reason=ThreadEnd.STOP, num_tokens=1)
        FEEDS.emit("r", 0, [ended, SegmentWrote(segment=2, token_ids=[6])])

    def joins():
        FEEDS.emit("r", 0, [SegmentBegan(segment=3, index=-1, token_ids=[5, 6], position=3, parent=0)])

    trees, shown = Trees(KEY, streams=True, closes_threads=closes_threads), []
    presenter = TreePresenter(PassThrough(), trees)

    def show():
        *chunks, last = presenter.pass_on(chunk())
        assert last == chunk()
        assert all(c["choices"][0]["delta"] == {} and c["id"] == "c" for c in chunks)
        shown.append([segment["number"] for c in chunks for segment in c["choices"][0]["segments"]])

    outputs = [show, begins, show, ends, show, joins, show, show, output(told(0, [7], "stop"))]
    gather(trees, "r", *outputs)
    assert shown == expected
    segments = trees.ended[0]["segments"]
    assert [segment and segment["token_ids"] for segment in segments] == [None, [5], None, [5, 6]]


def test_a_segment_that_has_ended_is_shown_as_it_stands_in_the_tree():
    def begins():
        FEEDS.emit("r", 0, [SegmentBegan(segment=0, index=-1, token_ids=[1, 2], position=0)])
        FEEDS.emit("r", 0, [SegmentWrote(segment=0, token_ids=[9], logprobs=[-math.inf])])
        FEEDS.emit("r", 0, [SegmentBegan(segment=1, index=-1, token_ids=[3], position=3, parent=0)])

    streamed, whole = Trees(KEY, streams=True), Trees(KEY)
    for trees in (streamed, whole):
        gather(trees, "r", begins, output(told(0, [7], "stop")))
    ((index, told_of),) = streamed.segments
    assert (index, told_of["number"]) == (0, 0)
    assert told_of["segment"] == whole.ended[0]["segments"][0]
    presenter = TreePresenter(PassThrough(), streamed)
    first, created = (
        {"type": f"response.{name}", "sequence_number": number}
        for number, name in enumerate(("created", "in_progress"))
    )
    assert presenter.pass_on(first) == [first]
    event = {"type": "response.forkjoin.segments", "sequence_number": 1, "segments": [told_of]}
    assert presenter.pass_on(created) == [event, created | {"sequence_number": 2}]


def test_segments_of_an_answer_that_is_one_chunk_come_before_it():
    def begins():
        FEEDS.emit("r", 0, [SegmentBegan(segment=0, index=-1, token_ids=[1, 2], position=0)])
        FEEDS.emit("r", 0, [SegmentBegan(segment=1, index=-1, token_ids=[3], position=2, parent=0)])

    trees, last = Trees(KEY, streams=True), {"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}
    gather(trees, "r", begins, output(told(0, [7], "stop")))
    of_segments, end = TreePresenter(PassThrough(), trees).pass_on(last)
    assert [segment["number"] for segment in of_segments["choices"][0]["segments"]] == [0]
    assert (of_segments["choices"][0]["text"], of_segments["choices"][0]["finish_reason"]) == ("", None)
    assert [segment is None for segment in end["choices"][0]["tree"]["segments"]] == [True, False]


def test_an_answer_whose_tree_can_not_be_built_ends_without_it():
    errors = []
    observe = lambda event, engine: errors.append(event.where)  # noqa: E731
    trees, last = Trees(KEY, num_choices=2, num_answers=2), [told(0, [7], "stop"), told(1, [8], "stop")]
    last[0].logprobs = []
    FEEDS.observers.append(observe)
    try:
        outputs = gather(trees, "r", output(*last))
    finally:
        FEEDS.observers.remove(observe)
    assert outputs == [(output(*last), {1})]
    assert errors == ["tree"]


def test_an_answer_that_lacks_an_event_has_no_tree():
    def tells():
        FEEDS.emit("r", 0, [SegmentBegan(segment=0, index=-1, token_ids=[1, 2], position=0)])
        with pytest.raises(IndexError):
            FEEDS.emit("r", 0, [SegmentWrote(segment=9, token_ids=[9], logprobs=[-0.25])])

    trees = Trees(KEY)
    assert len(gather(trees, "r", tells, output(told(0, [7], "stop")))) == 1
    assert trees.ended == {}


@pytest.mark.parametrize("joint", "-_")
def test_the_answers_to_several_prompts_are_numbered_as_choices_are(joint):
    trees = Trees(KEY, num_choices=2, num_answers=6)
    gather(trees, f"cmpl-{KEY}{joint}2", output(told(1, [8], "stop")))
    assert set(trees.ended) == {5}


def test_of_what_is_left_in_the_middle_nobody_hears_any_more():
    async def left():
        async def given():
            yield output(told(0, [7]))

        async for _ in (outputs := trees.gathering("r", PARAMS, given())):
            break
        await outputs.aclose()

    trees = Trees(KEY)
    asyncio.run(left())
    assert trees.ended == {}
    assert FEEDS._listeners == {}


def test_log_probabilities_are_asked_for_beside_what_the_client_asked():
    asked = SamplingParams()
    assert (with_logprobs(asked).logprobs, asked.logprobs) == (0, None)
    assert with_logprobs(SamplingParams(logprobs=3)).logprobs == 3


def test_as_json_it_is_what_a_client_reads_whatever_was_sampled():
    tree = sequential([1], [7], [{7: -math.inf, 8: -0.5}], 2, None, "stop")
    value = as_json(tree)
    text = json.dumps(value, allow_nan=False)
    read = Tree.from_dict(json.loads(text))
    assert read.segments[0].logprobs == [None, -9999.0]
    assert read.segments[0].top_logprobs == [{}, {7: -9999.0, 8: -0.5}]
    plain = sequential([1], [7], [{7: -0.25}], 0, 3, "stop")
    assert as_json(plain) == plain.to_dict()


def test_every_field_of_a_tree_is_published():
    tree = sequential([1], [7], [{7: -0.25}], 1, 3, "stop")
    ForkJoinTree.model_validate(as_json(tree))
    assert set(as_json(tree)) == set(ForkJoinTree.model_fields)
    assert set(as_json(tree)["segments"][0]) == set(ForkJoinSegment.model_fields)
    assert set(ForkJoinJoined.model_fields) == {"segment", "num_tokens", "num_skipped"}


@pytest.fixture
def presenter():
    return TreePresenter(PassThrough(), Trees(KEY, ended={0: {"voted": None}, 1: {"voted": 2}}))


def test_in_a_stream_it_stands_beside_the_finish_reason(presenter):
    middle = {"choices": [{"index": 1, "finish_reason": None}]}
    last = {"choices": [{"index": 1, "finish_reason": "stop"}]}
    assert presenter.pass_on(middle) == [middle]
    assert presenter.pass_on({"choices": []}) == [{"choices": []}]
    assert presenter.pass_on(last) == [{"choices": [last["choices"][0] | {"tree": {"voted": 2}}]}]


def test_a_response_has_it_in_its_last_event(presenter):
    other = {"type": "response.created", "response": {"id": "r"}}
    assert presenter.pass_on(other) == [other]
    (final,) = presenter.pass_on({"type": "response.completed", "response": {"id": "r"}})
    assert final["response"] == {"id": "r", "tree": {"voted": None}}
    assert presenter.whole({"output": []}) == {"output": [], "tree": {"voted": None}}


def test_each_choice_of_a_whole_answer_has_its_own(presenter):
    choices = [{"index": i, "finish_reason": "stop"} for i in range(3)]
    told = presenter.whole({"choices": choices})["choices"]
    assert [choice.get("tree") for choice in told] == [{"voted": None}, {"voted": 2}, None]
