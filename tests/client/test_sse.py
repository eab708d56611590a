from __future__ import annotations

import doctest
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkjoin import StreamBroken, sse
from forkjoin.sse import SseDecoder


def test_the_example_of_the_docstring_is_right():
    assert doctest.testmod(sse).failed == 0


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1)),
    st.data(),
)
def test_the_data_of_events_comes_out_however_the_bytes_are_cut(texts, data):
    wire = "".join(f": ping\n\ndata: {text}\n\n" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)))))
    decoder = SseDecoder()
    parts = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert [event for part in parts for event in decoder.feed(part)] == texts


@pytest.mark.parametrize(
    ("wire", "events"),
    [
        (b"data: a\r\n\r\n", ["a"]),
        (b"data:a\n\n", ["a"]),
        (b"event: x\nid: 3\ndata: a\ndata: b\n\n", ["a\nb"]),
        ("data: a\u2028b\x0bc\n\n".encode(), ["a\u2028b\x0bc"]),
        (b"data: not yet\n", []),
        (b"\n\n: only a comment\n\n", []),
    ],
    ids=["crlf", "no_space", "other_fields", "other_line_ends", "incomplete", "no_data"],
)
def test_lines_are_read_as_the_standard_says(wire, events):
    assert SseDecoder().feed(wire) == events


def test_a_long_line_is_put_together_once():
    decoder, piece = SseDecoder(), b"x" * 1024
    decoder.feed(b"data: ")
    began_s = time.process_time()
    for _ in range(16_384):
        assert decoder.feed(piece) == []
    (text,) = decoder.feed(b"\n\n")
    assert time.process_time() - began_s < 2  # a copy for each piece takes ten times as long
    assert len(text) == 16 * 1024**2


def test_what_is_no_utf_8_breaks_the_stream():
    with pytest.raises(StreamBroken, match="expected UTF-8 in the stream"):
        SseDecoder().feed(b"data: a\xff\n\n")
