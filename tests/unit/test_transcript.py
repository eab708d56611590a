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


@given(st.lists(st.text("abc", max_size=6), min_size=1, max_size=5), st.randoms())
def test_a_token_leaves_as_soon_as_all_that_stands_before_it_has(texts, rng):
    transcript = LinearTranscript([[f"<{i}>"] for i in range(len(texts))])
    released = "".join(transcript.start())
    todo, done, ended = [list(t) for t in texts], [""] * len(texts), set()
    while len(ended) < len(texts):
        position = rng.choice([i for i in range(len(texts)) if i not in ended])
        if todo[position]:
            piece = todo[position].pop(0)
            done[position] += piece
            released += "".join(transcript.push(position, [piece]))
        else:
            ended.add(position)
            released += "".join(transcript.end(position))
        visible = next((i for i in range(len(texts)) if i not in ended), len(texts) - 1)
        assert released == "".join(f"<{i}>{done[i]}" for i in range(visible + 1))


@given(st.integers(1, 5).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.integers(0, n - 1))))
def test_a_cut_transcript_ends_with_the_thread_that_cut_it(case):
    order, last = case
    transcript = LinearTranscript([[f"<{i}>"] for i in range(len(order))])
    transcript.cut(last)
    released = transcript.start()
    for position in order:
        released += transcript.push(position, [str(position)]) + transcript.end(position)
    assert "".join(released) == "".join(f"<{i}>{i}" for i in range(last + 1))


def test_what_was_held_leaves_behind_its_header_when_its_turn_comes():
    transcript = LinearTranscript([["h0"], ["h1"], ["h2"]])
    assert transcript.push(2, ["c"]) + transcript.push(1, ["b"]) + transcript.end(1) == []
    assert transcript.end(0) == ["h1", "b", "h2", "c"]
    assert transcript.push(2, ["d"]) == ["d"]
