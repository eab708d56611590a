"""Text of threads from their tokens, of which one may be a part of a character."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.thread_text import INCOMPLETE, FamilyTexts


class Bytes:
    """A decoder whose tokens are bytes."""

    def decode(self, ids, *, skip_special_tokens):
        assert not skip_special_tokens
        return bytes(ids).decode(errors="replace")


def tokens(index, text, *, cut=0):
    ids = list(text.encode())
    return {"type": "tokens", "index": index, "token_ids": ids[: len(ids) - cut]}


def read(texts, *events):
    return [(e["type"], e.get("index"), e.get("text")) for e in texts.read(Bytes(), list(events))]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_text_leaves_as_soon_as_its_characters_are_whole_and_nothing_twice(size):
    ids, texts = list("añ€😀b".encode()), FamilyTexts()
    parts = [ids[i : i + size] for i in range(0, len(ids), size)]
    events = [{"type": "tokens", "index": 0, "token_ids": part} for part in parts]
    said = [text for event in events for _, _, text in read(texts, event)]
    assert "".join(said) == "añ€😀b"
    assert not any(INCOMPLETE in text for text in said)


@pytest.mark.parametrize("cut", [1, 2])
def test_what_was_held_back_leaves_before_the_end_of_its_thread(cut):
    texts, end = FamilyTexts(), {"type": "thread_ended", "index": 1}
    assert read(texts, tokens(1, "ab€", cut=cut)) == [("tokens", 1, "")]
    assert read(texts, end) == [("tokens", 1, f"ab{INCOMPLETE}"), ("thread_ended", 1, None)]


def test_a_thread_whose_text_has_left_ends_without_more():
    texts = FamilyTexts()
    read(texts, tokens(0, "ab"))
    assert read(texts, {"type": "thread_ended", "index": 0}) == [("thread_ended", 0, None)]


def test_what_any_thread_held_back_leaves_before_the_end_of_the_family():
    texts = FamilyTexts()
    read(texts, tokens(0, "é", cut=1), tokens(1, "b"), tokens(2, "c€", cut=1))
    assert read(texts, {"type": "family_ended"}) == [
        ("tokens", 0, INCOMPLETE),
        ("tokens", 2, f"c{INCOMPLETE}"),
        ("family_ended", None, None),
    ]
