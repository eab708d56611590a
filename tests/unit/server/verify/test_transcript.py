from __future__ import annotations

import pytest
import yaml

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_server.verify import transcript
from forkjoin_server.verify.transcript import THREAD_TOKENS, dialect_file, ending_in_a_block, take_apart

HEADERS, JOIN = [[1, 2], [1, 3], [1, 4]], [5]
THREADS = [[*h, *range(100 * n, 100 * n + THREAD_TOKENS)] for n, h in enumerate(HEADERS, 1)]
WHOLE = [*THREADS[0], *THREADS[1], *THREADS[2], 5, 60, 61]


@pytest.mark.parametrize("join", ["reprefill", "stitch"])
def test_its_dialect_is_one_with_the_texts_that_answers_are_taken_apart_by(join):
    dialect = Dialect.model_validate(yaml.safe_load(dialect_file(join)))
    assert (dialect.join.kind, dialect.width) == (join, transcript.WIDTH)
    assert (dialect.thread.header, dialect.join.text) == (transcript.HEADER, transcript.JOIN_TEXT)


@pytest.mark.parametrize(("num", "kept"), [(31, 31), (32, 31), (33, 33)])
def test_its_prompt_fills_no_block_to_the_end(num, kept):
    assert len(ending_in_a_block([0] * num, 16)) == kept


def test_its_joins_text_repeats_the_header_of_a_thread():
    assert transcript.HEADER.replace("{n}", "2") == transcript.JOIN_TEXT


def test_an_answer_is_its_threads_and_what_follows_the_join():
    parts = take_apart(WHOLE, HEADERS, JOIN)
    assert parts.threads == THREADS
    assert parts.after == [5, 60, 61]


@pytest.mark.parametrize(
    ("token_ids", "complaint"),
    [
        (WHOLE[1:], "expected thread 1"),
        (WHOLE[:20], "expected thread 1"),
        ([*THREADS[0], *THREADS[2]], "expected thread 2"),
        ([*THREADS[0], *THREADS[1], *THREADS[2], 5], "expected the join's text"),
        ([*THREADS[0], *THREADS[1], *THREADS[2], 6, 60], "expected the join's text"),
    ],
)
def test_an_answer_of_another_form_is_refused(token_ids, complaint):
    with pytest.raises(ValueError, match=complaint):
        take_apart(token_ids, HEADERS, JOIN)
