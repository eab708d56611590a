"""Text of threads from their tokens, of which one may be a part of a character."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish.events import FamilyEnded, ThreadEnded, Tokens
from forkjoin_scheduler.publish.thread_text import INCOMPLETE, FamilyTexts


class Bytes:
    """A decoder whose tokens are bytes."""

    def decode(self, ids, *, skip_special_tokens):
        assert not skip_special_tokens
        return bytes(ids).decode(errors="replace")


def tokens(index, text, *, cut=0):
    ids = list(text.encode())
    return Tokens(index=index, token_ids=ids[: len(ids) - cut])


def read(texts, *events):
    """What comes of ``events``: kind, index and text of each."""
    return [
        (e.kind, getattr(e, "index", None), getattr(e, "text", None))
        for e in texts.read(Bytes(), list(events))
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_text_leaves_as_soon_as_its_characters_are_whole_and_nothing_twice(size):
    ids, texts = list("añ€😀b".encode()), FamilyTexts()
    parts = [ids[i : i + size] for i in range(0, len(ids), size)]
    events = [Tokens(index=0, token_ids=part) for part in parts]
    said = [text for event in events for _, _, text in read(texts, event)]
    assert "".join(said) == "añ€😀b"
    assert not any(INCOMPLETE in text for text in said)


@pytest.mark.parametrize("cut", [1, 2])
def test_what_was_held_back_leaves_before_the_end_of_its_thread(cut):
    texts, end = FamilyTexts(), ThreadEnded(index=1, reason=ThreadEnd.STOP, num_tokens=0)
    assert read(texts, tokens(1, "ab€", cut=cut)) == [("tokens", 1, "")]
    assert read(texts, end) == [("tokens", 1, f"ab{INCOMPLETE}"), ("thread_ended", 1, None)]


def test_a_thread_whose_text_has_left_ends_without_more():
    texts = FamilyTexts()
    read(texts, tokens(0, "ab"))
    assert read(texts, ThreadEnded(index=0, reason=ThreadEnd.STOP, num_tokens=0)) == [
        ("thread_ended", 0, None)
    ]


def test_what_any_thread_held_back_leaves_before_the_end_of_the_family():
    texts = FamilyTexts()
    read(texts, tokens(0, "é", cut=1), tokens(1, "b"), tokens(2, "c€", cut=1))
    assert read(
        texts,
        FamilyEnded(surplus_tokens=0, num_threads=0, critical_path_tokens=0, total_tokens=0, family="f"),
    ) == [
        ("tokens", 0, INCOMPLETE),
        ("tokens", 2, f"c{INCOMPLETE}"),
        ("family_ended", None, None),
    ]
