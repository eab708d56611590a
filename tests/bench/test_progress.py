"""What long work shows on a terminal, and where its output is read by another program."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from forkjoin_bench.progress import working

LINE = "[run] round 1: " + "a long line that is not to be broken, " * 5


def shown(console):
    with working("bench", 4, num_done=1, console=console) as work:
        work.say(LINE)
        work.done()
        work.done(2)
    return console.file.getvalue()


def test_on_a_terminal_a_bar_says_how_much_is_done():
    text = shown(Console(file=StringIO(), force_terminal=True, width=100))
    assert "4/4" in text
    assert text.index(LINE) < text.index("4/4")


def test_elsewhere_there_are_the_lines_and_nothing_else():
    assert shown(Console(file=StringIO(), force_terminal=False, width=80)) == LINE + "\n"


def test_many_parts_draw_the_bar_once_for_each_hundredth():
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with working("bench", 1000, console=console) as work:
        for _ in range(999):
            work.done()
        drawn = console.file.getvalue()
    assert drawn.count("/1000") <= 100
    assert " 990/1000" in drawn
