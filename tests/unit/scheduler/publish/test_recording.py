from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from forkjoin_scheduler.publish.events import ROOT, SegmentBegan, SegmentWrote
from forkjoin_scheduler.publish.recording import Recording
from forkjoin_scheduler.publish.weights import FIRST, Weights


def _row(*token_ids):
    """What the engine tells of one token: itself, then the likeliest."""
    logprobs = -np.arange(len(token_ids), dtype=np.float32)
    return SimpleNamespace(logprob_token_ids=np.array([token_ids]), logprobs=logprobs[None])


def test_logprobs_end_where_the_tokens_do():
    """The engine tells those of drafts that are cut, too."""
    recording = Recording([1, 2], SimpleNamespace(seed=None, logprobs=1))
    recording.take()
    recording.wrote(ROOT, [7], [_row(7, 5), _row(8, 6)])
    (wrote,) = recording.take()
    assert wrote == SegmentWrote(
        segment=0, token_ids=[7], weight_version=FIRST, logprobs=[0.0], top=[{5: -1.0}]
    )


def test_a_token_without_logprobs_is_not_recorded():
    recording = Recording([1, 2], SimpleNamespace(seed=None, logprobs=0))
    recording.take()
    recording.wrote(ROOT, [7, 8], [_row(7)])
    (wrote,) = recording.take()
    assert (wrote.token_ids, wrote.logprobs, wrote.top) == ([7], [0.0], None)


def test_what_other_weights_go_on_with_is_a_segment_of_its_own_in_the_same_context():
    weights = Weights()
    recording = Recording([1, 2], SimpleNamespace(seed=3, logprobs=None), weights)
    recording.wrote(ROOT, [7, 8], None)
    weights.version = "b"
    recording.has_old_kv = True
    recording.wrote(ROOT, [9], None)
    recording.wrote(ROOT, [10], None)
    assert recording.take() == [
        SegmentBegan(segment=0, index=ROOT, token_ids=[1, 2], position=0, seed=3),
        SegmentWrote(segment=0, token_ids=[7, 8], weight_version=FIRST),
        SegmentBegan(
            segment=1, index=ROOT, token_ids=[], position=4, parent=0, fork_offset=4, seed=3, has_old_kv=True
        ),
        SegmentWrote(segment=1, token_ids=[9], weight_version="b"),
        SegmentWrote(segment=1, token_ids=[10], weight_version="b"),
    ]


def test_weights_that_change_before_a_branch_writes_begin_no_segment():
    weights = Weights()
    recording = Recording([1, 2], SimpleNamespace(seed=None, logprobs=None), weights)
    weights.version = "b"
    recording.wrote(ROOT, [7], None)
    assert [event.kind for event in recording.take()] == ["segment_began", "segment_wrote"]


def test_what_began_before_its_kv_was_of_earlier_weights_says_so_once_it_writes():
    """A prompt in the middle of its prefill, or a header: no token of it was sampled yet."""
    weights = Weights()
    recording = Recording([1, 2], SimpleNamespace(seed=3, logprobs=None), weights)
    weights.version = "b"
    recording.has_old_kv = True
    recording.wrote(ROOT, [7], None)
    recording.wrote(ROOT, [8], None)
    assert recording.take() == [
        SegmentBegan(segment=0, index=ROOT, token_ids=[1, 2], position=0, seed=3),
        SegmentBegan(
            segment=1, index=ROOT, token_ids=[], position=2, parent=0, fork_offset=2, seed=3, has_old_kv=True
        ),
        SegmentWrote(segment=1, token_ids=[7], weight_version="b"),
        SegmentWrote(segment=1, token_ids=[8], weight_version="b"),
    ]
