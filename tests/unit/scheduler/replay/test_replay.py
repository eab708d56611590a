"""Transcripts replayed: what the published ones come to, and what is said of one that differs."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import DialectError
from forkjoin_scheduler.replay.replay import replay
from tests.unit.scheduler.dialects.test_published import PUBLISHED

OUTLINES = "<Parallel>\n<Outlines>\n<Outline>1: even</Outline>\n<Outline>2: odd</Outline>\n</Outlines>"
THREADS = "\n<Thread>\n1: a\n</Thread><Thread>\n2: b\n</Thread>\n"


def kinds(dialect, transcript):
    return [found.kind for found in replay(load(dialect), transcript)]


@pytest.mark.parametrize("name", ["threadweaver", "parallel-r1", "multiverse", "npr", "aspd", "medverse"])
def test_a_published_transcript_is_what_the_engine_would_write(name):
    published = PUBLISHED[name]
    seen = kinds(name, published.joined[len(published.prompt) :])
    assert "differs" not in seen
    assert seen.count("fork") == seen.count("join") > 0
    assert seen[-1 - len(published.threads) :] == ["end"] * len(published.threads) + ["join"]


def test_each_place_has_its_line_and_its_offset():
    transcript = f"so\n{OUTLINES}{THREADS}</Parallel>\ndone"
    fork, first, second, join = replay(load("threadweaver"), transcript)
    assert transcript[: fork.offset].endswith("</Outlines>")
    assert transcript[: first.offset].endswith("a\n</Thread>")
    assert transcript[join.offset :] == "</Parallel>\ndone"
    assert [fork.line, first.line, second.line, join.line] == [6, 9, 11, 12]
    assert fork.text == "2 threads: 1 'even', 2 'odd'"


def test_threads_that_fork_are_read_within_their_parents():
    inner = "<Parallel>\n<Goal>\n<Outline>2.1: x</Outline>\n</Goal>\n<Path>\n2.1: y</Path>\n<Conclusion>\nz</Conclusion>"
    transcript = (
        "<Parallel>\n<Goal>\n<Outline>1: a</Outline>\n<Outline>2: b</Outline>\n</Goal>\n<Path>\n1: c</Path>"
        f"\n<Path>\n2: d{inner}</Path>\n<Conclusion>\ne"
    )
    assert kinds("multiverse", transcript) == [
        *("fork", "end", "fork", "end", "join", "end", "join"),
    ]


STEPS = "".join(
    f"<Outline> Transient Step {n}: a; Dependency: [{d}] </Outline>\n"
    for n, d in (("1", ""), ("2", ""), ("3", "2, 1"))
)


def test_threads_that_depend_on_others_are_read_behind_their_join():
    steps = "\n".join(f"<Step> Transient Step {n}: a\nb\n</Step>" for n in "123")
    transcript = f"<Plan>\n{STEPS}</Plan>\n<Execution>\n{steps}\n</Execution>\n<Conclusion>\nc"
    found = replay(load("medverse"), transcript)
    assert [f.kind for f in found] == ["fork", "end", "end", "join", "end", "join"]
    assert found[3].text == "all threads have ended: the next stage starts"
    assert transcript[found[3].offset :].startswith("<Step> Transient Step 3")
    assert found[5].text == "all threads have ended: the parent goes on"


@pytest.mark.parametrize(
    ("threads", "text"),
    [
        (
            THREADS.replace("\n<Thread>\n1:", "<Thread>1:"),
            r"before thread 1: the engine writes '\n<Thread>\n1:', the transcript has '<Thread>1: a'",
        ),
        (
            THREADS.replace("</Thread><Thread>", "</Thread>\n<Thread>"),
            r"before thread 2: the engine writes '<Thread>\n2:', the transcript has '\n<Thread>\n2'",
        ),
        (
            THREADS.rstrip("\n"),
            r"after the last thread: the engine writes '\n', the transcript has '</Parallel>'",
        ),
    ],
    ids=["header", "between", "join"],
)
def test_a_text_that_the_engine_writes_otherwise_is_shown_and_what_follows_is_read(threads, text):
    found = replay(load("threadweaver"), f"{OUTLINES}{threads}</Parallel>")
    assert [f.text for f in found if f.kind == "differs"] == [text]
    assert [f.kind for f in found if f.kind != "differs"] == ["fork", "end", "end", "join"]


def test_a_thread_without_its_end_tag_ends_with_the_transcript():
    *_, last = replay(load("threadweaver"), f"{OUTLINES}{THREADS[:-10]}")
    assert last.text == "thread 2 has no end tag; the policy thread_eos is end_request"


def test_a_trigger_without_outlines_is_refused_as_the_dialect_says():
    (refused,) = replay(load("threadweaver"), "<Parallel>\n<Outlines>\n</Outlines>\non")
    assert (refused.kind, refused.text) == ("refused", "no fork: no_outline; the policy is sequential")


@pytest.mark.parametrize(
    "name", ["apr", "apar", "asyncthink", "skeleton", "parathinker", "pasta", "ssft", "pacore"]
)
def test_a_dialect_whose_threads_no_transcript_shows_is_refused_with_the_reason(name):
    with pytest.raises(DialectError, match=f"dialect '{name}': expected one that forks at a trigger"):
        replay(load(name), "anything")
