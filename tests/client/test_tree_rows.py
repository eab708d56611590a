"""Trees as rows of prompt and completion, on trees that are worked out by hand."""

from __future__ import annotations

import pytest

from forkjoin import JoinedThread, Segment, Tree

REQUEST = -1


def joined_by_prefill():
    """A request asks 1 and writes 2; threads write 4 and 6 after 3 and 5; then it reads both and writes 7."""
    return Tree(
        [
            Segment(REQUEST, [1, 2], 1, 0, logprobs=[None, -0.2]),
            Segment(0, [3, 4, 9], 1, 2, 0, 2, forked_by=0, logprobs=[None, -0.4, -0.9]),
            Segment(1, [5, 6, 9], 1, 2, 0, 2, forked_by=0, logprobs=[None, -0.6, -0.9]),
            Segment(REQUEST, [3, 4, 9, 5, 6, 8, 7], 6, 2, 0, 2, logprobs=[*[None] * 6, -0.7]),
        ],
        [2, 3, 4, 9, 5, 6, 8, 7],
    )


def nested():
    """Thread 0 forks into thread 1, which writes 6 after 5; each join is prefilled."""
    return Tree(
        [
            Segment(REQUEST, [1, 2], 1, 0, logprobs=[None, -0.2]),
            Segment(0, [3, 4], 1, 2, 0, 2, forked_by=0, logprobs=[None, -0.4]),
            Segment(1, [5, 6], 1, 4, 1, 2, forked_by=1, logprobs=[None, -0.6]),
            Segment(0, [5, 6, 7], 2, 4, 1, 2, logprobs=[None, None, -0.7]),
            Segment(REQUEST, [3, 4, 5, 6, 7, 8], 5, 2, 0, 2, logprobs=[*[None] * 5, -0.8]),
        ],
        [2, 3, 4, 5, 6, 7, 8],
    )


def stitched():
    """The join sees the KV of two threads, without the second one's 30."""
    return Tree(
        [
            Segment(REQUEST, [10, 11], 1, 0, logprobs=[None, -0.1]),
            Segment(0, [20, 21], 1, 2, 0, 2, forked_by=0, logprobs=[None, -0.2]),
            Segment(1, [30, 31, 32], 2, 2, 0, 2, forked_by=0, logprobs=[None, None, -0.3]),
            Segment(
                REQUEST,
                [40, 41],
                1,
                5,
                0,
                2,
                joined=[JoinedThread(1, 2), JoinedThread(2, 3, 1)],
                logprobs=[None, -0.4],
            ),
        ],
        [11, 20, 21, 31, 32, 40, 41],
    )


def shown(row):
    return row.prompt_ids, row.completion_ids, row.mask, row.logprobs, row.is_exact


def test_after_a_prefill_each_context_is_a_row_and_each_sampled_token_counts_once():
    request, first, second = joined_by_prefill().rows()
    assert shown(request) == (
        [1],
        [2, 3, 4, 9, 5, 6, 8, 7],
        [1, 0, 0, 0, 0, 0, 0, 1],
        [-0.2, 0, 0, 0, 0, 0, 0, -0.7],
        True,
    )
    assert shown(first) == ([1, 2, 3], [4, 9], [1, 1], [-0.4, -0.9], True)
    assert shown(second) == ([1, 2, 5], [6, 9], [1, 1], [-0.6, -0.9], True)
    assert [request.thread, first.thread, second.thread] == [REQUEST, 0, 1]


def test_the_transcript_counts_what_threads_sampled_but_for_an_end_that_the_dialect_wrote():
    row = joined_by_prefill().transcript()
    assert shown(row) == (
        [1],
        [2, 3, 4, 9, 5, 6, 8, 7],
        [1, 0, 1, 1, 0, 1, 0, 1],
        [-0.2, 0, -0.4, -0.9, 0, -0.6, 0, -0.7],
        False,
    )


def test_threads_that_fork_again_are_rows_too():
    request, outer, inner = nested().rows()
    assert outer.prompt_ids == [1, 2, 3]
    assert (outer.completion_ids, outer.mask) == ([4, 5, 6, 7], [1, 0, 0, 1])
    assert (inner.prompt_ids, inner.completion_ids) == ([1, 2, 3, 4, 5], [6])
    assert (request.completion_ids, request.mask) == ([2, 3, 4, 5, 6, 7, 8], [1, 0, 0, 0, 0, 0, 1])
    assert nested().transcript().mask == [1, 0, 1, 0, 1, 1, 1]
    assert nested().transcript().logprobs == [-0.2, 0, -0.4, 0, -0.6, -0.7, -0.8]


def test_after_a_stitch_the_row_says_that_it_is_not_what_the_model_saw():
    request, first, second = stitched().rows()
    assert (request.completion_ids, request.mask) == ([11, 20, 21, 31, 32, 40, 41], [1, 0, 0, 0, 0, 0, 1])
    assert not request.is_exact
    assert first.is_exact
    assert second.is_exact
    row = stitched().transcript()
    assert row.completion_ids == [11, 20, 21, 31, 32, 40, 41]
    assert row.mask == [1, 0, 1, 0, 1, 0, 1]
    assert not row.is_exact


def test_a_thread_that_went_on_from_a_part_of_what_it_wrote_has_two_rows():
    tree = Tree(
        [
            Segment(REQUEST, [1, 2, 3], 1, 0, logprobs=[None, -0.2, -0.3]),
            Segment(REQUEST, [5, 4], 1, 2, 0, 2, logprobs=[None, -0.4]),
        ],
        [2, 5, 4],
    )
    whole, swapped = tree.rows()
    assert (whole.prompt_ids, whole.completion_ids) == ([1], [2, 3])
    assert (swapped.prompt_ids, swapped.completion_ids) == ([1, 2, 5], [4])
    assert tree.final_row() == swapped


def test_a_sequential_answer_is_one_exact_row_either_way():
    tree = Tree([Segment(REQUEST, [1, 2, 3], 1, 0, logprobs=[None, -0.2, -0.3])], [2, 3])
    assert tree.rows() == [tree.transcript()]
    assert shown(tree.transcript()) == ([1], [2, 3], [1, 1], [-0.2, -0.3], True)


def test_of_a_vote_the_transcript_is_the_thread_that_won():
    tree = Tree(
        [
            Segment(REQUEST, [1], 1, 0),
            Segment(0, [2], 0, 1, 0, 1, forked_by=0, logprobs=[-0.2]),
            Segment(1, [3, 4], 0, 1, 0, 1, forked_by=0, logprobs=[-0.3, -0.4]),
        ],
        [3],
        voted=1,
    )
    assert shown(tree.transcript()) == ([1], [3], [1], [-0.3], True)
    assert [row.completion_ids for row in tree.rows()] == [[2], [3, 4]]
    assert tree.final_row().completion_ids == [3, 4]


def test_the_final_row_is_the_requests_own_wherever_it_sampled_something():
    tree = joined_by_prefill()
    assert tree.final_row() == tree.rows()[0]
    del tree.segments[-1]  # it ends before the join
    assert shown(tree.final_row())[:2] == ([1], [2])
    tree.segments[0].num_injected = 2  # and wrote nothing before the fork
    assert tree.final_row().completion_ids == [6, 9]


def test_without_a_sampled_token_there_is_no_final_row():
    tree = Tree([Segment(REQUEST, [1, 2], 2, 0)], [])
    assert tree.rows() == []
    with pytest.raises(ValueError, match="expected a sampled token, found none"):
        tree.final_row()


def test_of_an_answer_that_ends_before_the_join_the_threads_count():
    tree = joined_by_prefill()
    del tree.segments[-1]
    tree.answer_ids = [2, 3, 4, 9, 5, 6]
    row = tree.transcript()
    assert (row.prompt_ids, row.completion_ids, row.mask) == ([1], [2, 3, 4, 9, 5, 6], [1, 0, 1, 1, 0, 1])
    assert not row.is_exact


def test_what_another_text_has_in_place_of_what_was_sampled_does_not_count():
    tree = joined_by_prefill()
    tree.answer_ids = [2, 99, 4, 9, 98, 7]
    row = tree.transcript()
    assert (row.completion_ids, row.mask) == ([2, 99, 4, 9, 98, 7], [1, 0, 1, 1, 0, 0])
    assert not row.is_exact


def test_what_two_weights_have_sampled_is_not_exact():
    tree = joined_by_prefill()
    for segment in tree.segments:
        segment.weight_version = "1"
    assert all(row.is_exact for row in tree.rows())
    tree.segments[-1].weight_version = "2"
    assert [row.is_exact for row in tree.rows()] == [False, True, True]


def test_what_was_sampled_on_kv_of_earlier_weights_is_not_exact():
    tree = joined_by_prefill()
    tree.segments[-1].has_old_kv = True
    assert [row.is_exact for row in tree.rows()] == [False, True, True]


def test_without_logprobs_there_are_no_rows():
    tree = Tree([Segment(REQUEST, [1, 2], 1, 0)], [2])
    for rows in (tree.rows, tree.transcript):
        with pytest.raises(ValueError, match="segment 0: expected logprobs"):
            rows()
