from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.transcript import LinearTranscript


@given(st.lists(st.text("abc", max_size=6), min_size=1, max_size=5), st.randoms())
def test_released_in_outline_order_whatever_order_the_threads_ran_in(texts, rng):
    transcript = LinearTranscript([[f"<{i}>"] for i in range(len(texts))])
    released = transcript.start()
    todo = {i: list(t) for i, t in enumerate(texts)}
    while todo:
        position = rng.choice(sorted(todo))
        if todo[position]:
            released += transcript.push(position, [todo[position].pop(0)])
        else:
            del todo[position]
            released += transcript.end(position)
    assert "".join(released) == "".join(f"<{i}>{t}" for i, t in enumerate(texts))


def test_the_first_open_thread_streams_live():
    transcript = LinearTranscript([["h0"], ["h1"]])
    assert transcript.push(0, ["a"]) == ["a"]
    assert transcript.push(1, ["b"]) == []


def test_nothing_behind_a_cut_is_released():
    transcript = LinearTranscript([["h0"], ["h1"], ["h2"]])
    transcript.cut(1)
    assert transcript.push(2, ["c"]) == []
    assert transcript.end(2) + transcript.end(0) + transcript.end(1) == ["h1"]
