"""Which dialect a transcript is written in."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.dialects.fitting import fitting, marks
from forkjoin_scheduler.replay.recognise import candidates_of_transcript
from tests.unit.scheduler.dialects.test_published import PUBLISHED

BUILT_IN = [load(name) for name in builtin_names()]


def names(transcript):
    return [c.dialect.name for c in fitting(candidates_of_transcript(BUILT_IN, transcript))]


def seen(name, transcript):
    (candidate,) = [c for c in candidates_of_transcript(BUILT_IN, transcript) if c.dialect.name == name]
    return candidate


@pytest.mark.parametrize("name", [n for n in PUBLISHED if marks(load(n)) and load(n).variant_of is None])
def test_a_published_transcript_is_in_its_own_dialect_alone(name):
    published = PUBLISHED[name]
    assert names(published.joined + published.wrote) == [name]


@pytest.mark.parametrize("name", [n for n in PUBLISHED if not marks(load(n))])
def test_a_dialect_without_tags_of_its_own_is_never_what_a_transcript_is_in(name):
    assert names(PUBLISHED[name].joined) == []
    assert names("So the answer is 42.") == []


def test_a_malformed_transcript_is_still_in_its_dialect_with_what_differs_against_it():
    published = PUBLISHED["threadweaver"]
    malformed = published.joined.replace("\n<Thread>\n1:", "<Thread>1:")
    assert names(malformed) == ["threadweaver"]
    assert seen("threadweaver", published.joined).speaks_for == (
        "it has 2 times </Outlines>",
        "replayed, it forks 2 times and joins 2",
    )
    assert seen("threadweaver", malformed).speaks_against == ("replayed, 1 places differ",)


def test_tags_of_another_dialect_without_its_trigger_speak_against_that_dialect():
    assert seen("multiverse", PUBLISHED["threadweaver"].joined).speaks_against == ("it has no </Goal>",)


def test_a_trigger_that_forks_nowhere_does_not_fit():
    without_outlines = "<Parallel>\n<Outlines>\n</Outlines>\nSo it is."
    assert not seen("threadweaver", without_outlines).fits
    assert seen("threadweaver", without_outlines).speaks_against == ("replayed, 1 forks are refused",)
