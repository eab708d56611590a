from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from forkjoin_scheduler.families.transcript import Transcript

#: A thread's text: letters, and forks into further threads.
texts = st.recursive(
    st.text("abc", max_size=4), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=12
)


def _linear(text) -> str:
    return text if isinstance(text, str) else "".join(f"<{_linear(t)}>" for t in text) + "."


def _feed(transcript, text, rng):
    """Yield between the steps in which ``text`` is written, threads in random order."""
    if isinstance(text, str):
        for letter in text:
            transcript.push([letter])
            yield
    else:
        threads = transcript.fork([["<"] for _ in text])
        open_ = [(t, _feed(t, inner, rng)) for t, inner in zip(threads, text, strict=True)]
        while open_:
            thread, steps = rng.choice(open_)
            if next(steps, "end") == "end":
                thread.push([">"])
                thread.close()
                open_.remove((thread, steps))
            yield
        transcript.push(["."])
    yield


@given(st.lists(texts, min_size=1, max_size=3), st.integers())
def test_released_in_outline_order_whatever_order_the_threads_ran_in(text, seed):
    root: Transcript[str] = Transcript()
    released: list[str] = []
    for _ in _feed(root, text, random.Random(seed)):
        before = "".join(released)
        released += root.release()
        assert _linear(text).startswith("".join(released))
        assert len(released) >= len(before)
    released += root.release()
    assert "".join(released) == _linear(text)


def test_the_first_open_thread_streams_live_and_the_next_is_held_back():
    root: Transcript[str] = Transcript()
    first, second = root.fork([["h0"], ["h1"]])
    assert root.release() == ["h0"]
    first.push(["a"])
    second.push(["b"])
    assert root.release() == ["a"]
    first.close()
    assert root.release() == ["h1", "b"]


def test_a_join_speaks_behind_the_last_thread():
    root: Transcript[str] = Transcript()
    (only,) = root.fork([["h"]])
    root.push(["joined"])
    assert root.release() == ["h"]
    only.close()
    assert root.release() == ["joined"]


def test_nothing_behind_a_cut_is_released():
    root: Transcript[str] = Transcript()
    first, second, third = root.fork([["h0"], ["h1"], ["h2"]])
    inner, later = second.fork([["i0"], ["i1"]])
    inner.push(["x"])
    inner.cut()
    for thread in (inner, later, third, second, first):
        thread.close()
    root.push(["joined"])
    assert root.release() == ["h0", "h1", "i0", "x"]
    assert root.release() == []


def test_a_branch_that_does_not_wait_for_its_threads_speaks_behind_them():
    root: Transcript[str] = Transcript(["a"])
    (first,) = root.fork([["h0"]])
    root.push(["b"])
    (second,) = root.fork([["h1"]])
    root.push(["c"])
    root.close()
    assert root.release() == ["a", "h0"]
    second.push(["y"])
    second.close()
    assert root.release() == []
    first.push(["x"])
    first.close()
    assert root.release() == ["x", "b", "h1", "y", "c"]
    assert root.is_done


def test_a_cut_transcript_is_never_done():
    root: Transcript[str] = Transcript(["a"])
    root.cut()
    root.close()
    assert root.release() == ["a"]
    assert not root.is_done
