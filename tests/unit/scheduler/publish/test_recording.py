from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from forkjoin_scheduler.publish.events import ROOT, SegmentWrote
from forkjoin_scheduler.publish.recording import Recording


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
    assert wrote == SegmentWrote(segment=0, token_ids=[7], logprobs=[0.0], top=[{5: -1.0}])


def test_a_token_without_logprobs_is_not_recorded():
    recording = Recording([1, 2], SimpleNamespace(seed=None, logprobs=0))
    recording.take()
    recording.wrote(ROOT, [7, 8], [_row(7)])
    (wrote,) = recording.take()
    assert (wrote.token_ids, wrote.logprobs, wrote.top) == ([7], [0.0], None)
