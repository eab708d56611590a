from __future__ import annotations

import doctest
import io

import pytest
from rich.console import Console

from forkjoin import (
    Answer,
    AnswerDelta,
    Finished,
    Forked,
    ForkJoinUsage,
    Joined,
    StartedThread,
    ThreadDelta,
    ThreadEnded,
    ThreadWaits,
    Usage,
)
from forkjoin.lanes import ANSWER, Lane, Lanes
from forkjoin.terminal import lanes_view
from forkjoin.terminal.lanes_view import bar, numbers, table
from forkjoin.terminal.printable import printable


def forked(*indices, parent="root"):
    threads = tuple(StartedThread(index=i, id=f"t{i}", parent_id=parent, title=f"T{i}") for i in indices)
    return Forked(parent_id=parent, threads=threads)


def ended(index, reason="stop"):
    return ThreadEnded(index=index, finish_reason=reason, completion_tokens=10)


USAGE = Usage(
    completion_tokens=50,
    forkjoin=ForkJoinUsage(num_threads=4, critical_path_tokens=30, total_tokens=50),
)
#: A fork at 1, another within its second thread at 2, that joins at 5; all joined at 8, the end at 10.
EVENTS = [
    (AnswerDelta(text="so"), 0.5),
    (forked(0, 1), 1),
    (ThreadDelta(index=0, text="a"), 1.5),
    (forked(2, 3, parent="t1"), 2),
    (ended(2), 3),
    (ended(3, "length"), 4),
    (Joined(parent_id="t1", threads=(2, 3)), 5),
    (ended(0), 6),
    (ended(1), 8),
    (Joined(parent_id="root", threads=(0, 1)), 8),
    (Finished(answer=Answer(finish_reason="stop", usage=USAGE)), 10),
]


def after(num=None):
    lanes = Lanes()
    for event, at in EVENTS[:num]:
        lanes.take(event, at)
    return lanes


def test_each_thread_has_a_lane_below_that_of_its_parent():
    order = [(lane.index, lane.depth) for lane in after().in_order()]
    assert order == [(ANSWER, 0), (0, 1), (1, 1), (2, 2), (3, 2)]


def test_a_lane_lasts_from_its_fork_to_its_end_and_a_split_from_fork_to_join():
    lanes = after()
    assert [(lanes[i].start, lanes[i].end) for i in (ANSWER, 0, 1, 2, 3)] == [
        (0, 10),
        (1, 6),
        (1, 8),
        (2, 3),
        (2, 4),
    ]
    assert [(s.start, s.end, s.threads) for s in lanes[1].splits] == [(2, 5, [2, 3])]
    assert [(s.start, s.end) for s in lanes.answer.splits] == [(1, 8)]


def test_the_answers_own_tokens_are_those_of_no_thread():
    assert after().answer.num_tokens == 10


def test_who_waits_for_its_threads_does_not_write():
    writing = [lane.index for lane in after(4).in_order() if lane.is_writing]
    assert writing == [0, 2, 3]


def test_a_lane_has_the_waits_of_its_thread_and_the_last_ends_with_it():
    lanes = after(2)
    for at, wait in [(1, "wave"), (2, "turn"), (4, None), (5, "room")]:
        lanes.take(ThreadWaits(index=0, waits_for=wait), at)
    assert (lanes[0].waits_for, lanes[0].is_writing) == ("room", False)
    assert bar(lanes[0], 8, 8) == " ┣░░━░░░"
    assert numbers(lanes[0], 8, "s") == "waits: room"
    lanes.take(ended(0), 6)
    assert [(w.start, w.end, w.waits_for) for w in lanes[0].waits] == [
        (1, 2, "wave"),
        (2, 4, "turn"),
        (5, 6, "room"),
    ]
    lanes.take(ThreadWaits(index=1, waits_for="turn"), 7)
    lanes.stop(9)
    assert lanes[1].waits[0].end == 9


def test_a_cancelled_answer_ends_all_that_runs():
    lanes = after(5)
    lanes.stop(9)
    assert {lane.end for lane in lanes.in_order()} == {9, 3}
    assert lanes[0].finish_reason == "cancelled"
    assert lanes[2].finish_reason == "stop"
    assert [s.end for s in lanes[1].splits] == [9]


def lane(index, depth, *threads):
    splits = [{"start": 0, "end": 1, "threads": threads}] if threads else []
    return Lane(index=index, title="", depth=depth, start=0, end=1, splits=splits)


@pytest.mark.parametrize(
    "given",
    [
        [lane(ANSWER, 0, 0), lane(0, 1, 0)],
        [lane(ANSWER, 0, 0), lane(0, 1, ANSWER)],
        [lane(ANSWER, 0), lane(0, 1, 1), lane(1, 2, 0)],
        [lane(ANSWER, 0, 0, 0), lane(0, 1)],
        [lane(ANSWER, 0, 0, 1), lane(0, 1, 2), lane(1, 1, 2), lane(2, 2)],
        [lane(ANSWER, 0, 0), lane(0, 1), lane(0, 1)],
        [lane(ANSWER, 0), lane(0, 1)],
        [lane(ANSWER, 0, 0)],
        [lane(ANSWER, 0, 0), lane(0, 10**9)],
        [],
    ],
    ids=[
        "itself", "the_answer", "a_circle", "twice", "of_two", "two_lanes", "of_none", "no_lane", "deep", "none",
    ],
)  # fmt: skip
def test_lanes_that_are_no_tree_are_refused(given):
    with pytest.raises(ValueError, match="lanes: expected those of the answer and of each thread"):
        Lanes.of(given)


def test_lanes_may_be_thousands_deep():
    deep = [lane(i, i + 1, i + 1) for i in range(ANSWER, 3000)] + [lane(3000, 3001)]
    assert [lane.index for lane in Lanes.of(deep).in_order()] == list(range(ANSWER, 3001))


# ---- as a table ----------------------------------------------------------------------------


def shown(lanes, **more):
    console = Console(width=100, color_system=None, file=io.StringIO())
    console.print(table(lanes, 10, width=100, **more))
    return console.file.getvalue().splitlines()


def test_the_example_of_a_bar_is_right():
    assert doctest.testmod(lanes_view).failed == 0


def test_the_table_shows_who_ran_when():
    lines = shown(after())
    assert [line[:28].rstrip() for line in lines] == ["answer", "  T0", "  T1", "    T2", "    T3", ""]
    bars = [line[29:72] for line in lines[:5]]
    assert bars[0].startswith("━━━━┄┄┄")
    assert bars[1].index("┫") < bars[2].index("┫")
    assert all(b.count("┣") == 1 for b in bars[1:])
    assert "10 tokens 2/s" in lines[1]
    assert lines[4].rstrip().endswith("length")
    assert lines[5].rstrip().endswith("10.00 s")


def test_of_many_lanes_the_rest_is_counted():
    assert [line.split("  ")[0].strip() for line in shown(after(), most=2)] == ["answer", "", "… 3 more", ""]


@pytest.mark.parametrize("end", [1e-9, 0.5, 3.0, 1e6])
@pytest.mark.parametrize("width", [10, 11, 80])
def test_a_bar_fills_its_width_at_any_time(end, width):
    for start, last in [(0, None), (0, end), (end / 3, end), (end, end), (0, 0)]:
        assert len(bar(Lane(index=0, title="", depth=1, start=start, end=last), end, width)) == width


def test_what_a_terminal_would_obey_is_not_shown():
    assert printable("a\x1b[2Jb\x07\x9bc\td\ne") == "a�[2Jb��c\td\ne"


def test_how_a_thread_ended_is_shown_on_one_line_without_what_a_terminal_would_obey():
    lanes = after(4)
    lanes.take(ended(2, "a\x1b]0;b\x07\nc"), 3)
    assert shown(lanes)[3].rstrip().endswith("a�]0;b� c")
