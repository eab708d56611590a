from __future__ import annotations

import pytest

from forkjoin_scheduler.publish.events import Tokens
from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.answer.tokens import TokenThreads
from tests.unit.server.answer.test_threads import FORKED


@pytest.fixture
def log():
    return ThreadLog("k", is_wanted=True, has_token_ids=True)


@pytest.mark.parametrize("mode", ["tokens", "text"])
def test_entries_come_in_chunks_shaped_like_vllms(log, mode):
    shown = TokenThreads(log)
    assert not shown.is_ready
    text = {"text": "a"} if mode == "text" else {}
    chunk = {"request_id": "r", "output_mode": mode, "choices": [{"index": 0, "token_ids": [1]} | text]}
    assert shown.pass_on(chunk) == [chunk]
    (entries,) = shown.show(log.delta(FORKED))
    choice = entries["choices"][0]
    assert (entries["request_id"], entries["output_mode"]) == ("r", mode)
    assert (choice["index"], choice["token_ids"], choice["finish_reason"]) == (0, [], None)
    assert [t["token_ids"] for t in choice["threads"]] == [[], []]
    assert ("text" in choice) == (mode == "text")


def test_an_answer_that_is_not_streamed_has_all_threads_at_its_choice(log):
    log.delta(FORKED)
    log.delta(Tokens(index=1, text="ab", token_ids=[8, 9]))
    (choice,) = TokenThreads(log).whole({"choices": [{"index": 0, "token_ids": [1]}]})["choices"]
    assert [t["token_ids"] for t in choice["threads"]] == [[], [8, 9]]
