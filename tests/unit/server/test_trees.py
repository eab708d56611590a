"""Trees from events."""

from __future__ import annotations

import copy

import pytest

from forkjoin import JoinedThread
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import (
    Forked,
    Joins,
    NewThread,
    SegmentBegan,
    SegmentWrote,
    ThreadEnded,
    Voted,
)
from forkjoin_server.trees import TreeBuilder, sequential

FORK = [
    SegmentBegan(segment=0, index=-1, token_ids=[1, 2], position=0, seed=3),
    SegmentWrote(segment=0, token_ids=[4], logprobs=[-0.25], top=[{4: -0.25, 5: -2.0}]),
    Forked(
        parent_index=-1,
        threads=[NewThread(index=0, number="1", title="a"), NewThread(index=1, number="2", title="b")],
        shared_tokens=3,
    ),
    SegmentBegan(segment=1, index=0, token_ids=[6], position=3, parent=0, fork_offset=3, forked_by=0),
    SegmentBegan(segment=2, index=1, token_ids=[6], position=3, parent=0, fork_offset=3, forked_by=0),
    SegmentWrote(segment=1, token_ids=[7, 8], logprobs=[-1.0, -2.0]),
]
JOIN = [
    ThreadEnded(index=0, reason=ThreadEnd.STOP, num_tokens=2),
    ThreadEnded(index=1, reason=ThreadEnd.LENGTH, num_tokens=0),
    SegmentBegan(
        segment=3, index=-1, token_ids=[9], position=6, parent=0, fork_offset=3,
        joined=[Joins(segment=1, num_tokens=3, num_skipped=0), Joins(segment=2, num_tokens=1, num_skipped=1)],
    ),
    SegmentWrote(segment=3, token_ids=[10]),
]  # fmt: skip


def built(*events):
    builder = TreeBuilder()
    for event in events:
        builder.hear([event])
    return builder


def test_segments_have_what_their_events_tell():
    tree = built(*FORK, *JOIN).tree([4, 6, 7], "stop")
    root, first, second, joined = tree.segments
    assert (root.token_ids, root.num_injected, root.seed) == ([1, 2, 4], 2, 3)
    assert root.logprobs == [None, None, -0.25]
    assert root.top_logprobs == [{}, {}, {4: -0.25, 5: -2.0}]
    assert (first.title, first.logprobs, first.parent, first.forked_by) == ("a", [None, -1.0, -2.0], 0, 0)
    assert (second.title, second.finish_reason, second.logprobs) == ("b", "length", None)
    assert (joined.token_ids, joined.joined) == ([9, 10], [JoinedThread(1, 3), JoinedThread(2, 1, 1)])
    assert [s.finish_reason for s in tree.segments] == [None, "stop", "length", "stop"]
    assert tree.linear() == [4, 6, 7]


def test_a_token_more_is_appended_and_no_list_is_made_anew():
    builder = built(*FORK[:2])
    (segment,) = builder.tree([4], None).segments
    lists = segment.token_ids, segment.logprobs, segment.top_logprobs
    for _ in range(100):
        builder.hear([SegmentWrote(segment=0, token_ids=[5], logprobs=[-0.5], top=[{5: -0.5}])])
    assert segment.logprobs is lists[1]
    assert segment.top_logprobs is lists[2]
    assert [len(own) for own in lists] == [103] * 3


def test_of_a_request_that_ended_in_the_middle_there_is_the_tree_so_far():
    tree = built(*FORK).tree([4], "stop")
    assert [(s.token_ids, s.finish_reason) for s in tree.segments] == [
        ([1, 2, 4], "stop"), ([6, 7, 8], "cancelled"), ([6], "cancelled"),
    ]  # fmt: skip


#: A stitched join closes each thread with a segment.
STITCHED = [
    *JOIN[:2],
    SegmentBegan(segment=3, index=0, token_ids=[20], position=6, parent=1, fork_offset=3),
    SegmentBegan(segment=4, index=1, token_ids=[20], position=4, parent=2, fork_offset=1),
    SegmentBegan(
        segment=5, index=-1, token_ids=[9], position=7, parent=0, fork_offset=3,
        joined=[Joins(segment=3, num_tokens=1, num_skipped=0), Joins(segment=4, num_tokens=1, num_skipped=0)],
    ),
    SegmentWrote(segment=5, token_ids=[10]),
]  # fmt: skip


@pytest.mark.parametrize("events", [[*FORK, *JOIN], [*FORK, *STITCHED], FORK, [*FORK, *JOIN[:2]]])
def test_segments_that_are_taken_as_they_end_are_those_of_the_whole_tree(events):
    builder, taken = TreeBuilder(closes_threads=True), {}
    for event in events:
        builder.hear([event])
        taken |= {number: copy.deepcopy(segment) for number, segment in builder.take_ended()}
    whole = built(*events).tree([], "stop").segments
    assert taken == {number: whole[number] for number in builder.taken}
    # left are the last of the root, and those of threads that did not join
    has_joined = len(whole) > 3
    assert len(whole) - len(taken) == (1 if has_joined else 3)


def test_a_tree_says_whose_text_a_vote_made_the_answer():
    assert built(*FORK, Voted(index=1, result="7")).tree([], "stop").voted == 1
    assert built(*FORK).tree([], "stop").voted is None


def test_a_request_that_has_not_forked_is_one_segment():
    told = [{7: -0.5, 8: -1.0}, {9: -3.0, 8: -0.1, 7: -0.2}]
    (segment,) = sequential([1, 2], [7, 9], told, 2, 5, "length").segments
    assert (segment.token_ids, segment.num_injected, segment.seed) == ([1, 2, 7, 9], 2, 5)
    assert segment.logprobs == [None, None, -0.5, -3.0]
    assert segment.top_logprobs == [{}, {}, {7: -0.5, 8: -1.0}, {8: -0.1, 7: -0.2}]
    assert segment.finish_reason == "length"
    (plain,) = sequential([1], [7], None, 0, None, "stop").segments
    assert (plain.logprobs, plain.top_logprobs) == (None, None)


def test_a_request_that_has_not_forked_has_a_segment_for_each_of_its_weights():
    told = [{7: -0.5}, {8: -1.0}, {9: -2.0}]
    first, second = sequential([1, 2], [7, 8, 9], told, 0, 5, "stop", [("a", 0, 2), ("b", 2, 3)]).segments
    assert (first.token_ids, first.weight_version, first.finish_reason) == ([1, 2, 7, 8], "a", None)
    assert (second.token_ids, second.weight_version, second.finish_reason) == ([9], "b", "stop")
    assert (second.parent, second.fork_offset, second.position, second.num_injected) == (0, 4, 4, 0)
    assert (first.logprobs, second.logprobs, second.seed) == ([None, None, -0.5, -1.0], [-2.0], 5)


def test_segments_name_the_weights_that_wrote_them():
    builder = built(
        SegmentBegan(segment=0, index=-1, token_ids=[1], position=0),
        SegmentWrote(segment=0, token_ids=[4], weight_version="a"),
        SegmentBegan(segment=1, index=-1, token_ids=[], position=2, parent=0, fork_offset=2, has_old_kv=True),
        SegmentWrote(segment=1, token_ids=[5], weight_version="b"),
    )
    tree = builder.tree([4, 5], "stop")
    assert [(s.weight_version, s.has_old_kv) for s in tree.segments] == [("a", False), ("b", True)]
    assert tree.layout.predictors == [-1, 0, 1]
    assert tree.draw().splitlines()[1] == "1: request at 2: 0 given, 1 sampled, old KV, stop"
