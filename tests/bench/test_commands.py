"""The commands of benchmarks that the docs show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from forkjoin_bench.cli import main, parser
from forkjoin_scheduler.errors import UsageError

ROOT = Path(__file__).parents[2]
#: A line of its own, which may go on in the next; not one with a placeholder (`FILE`, `…`).
COMMAND = re.compile(r"^ {4,}(?:\S*=\S+ )?forkjoin bench (?!simulate)((?:[^\\\n]|\\\n)+)$", re.M)


@pytest.mark.parametrize(
    "page", sorted(p.name for p in ROOT.glob("docs/*.md") if COMMAND.search(p.read_text()))
)
def test_the_benchmarks_take_every_command_that_the_docs_show(page: str) -> None:
    for command in COMMAND.findall((ROOT / "docs" / page).read_text()):
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        try:
            parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"forkjoin bench {' '.join(words)}")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("run --rounds 0", "--rounds: expected at least 1, got 0"),
        ("run --block-size 0", "--block-size: expected at least 1, got 0"),
        ("run --timeout 0", "--timeout: expected more than 0, got 0"),
        ("scheduler --widths 8 12", "--widths: expected 1 to 8, or whole families of 8, got 12"),
        ("scheduler --widths 0", "--widths: expected 1 to 8"),
        ("forks --rounds 0", "--rounds: expected at least 1, got 0"),
        ("forks --contexts 0", "--contexts: expected at least 1, got 0"),
        ("drafted --problems 0", "--problems: expected at least 1, got 0"),
        ("drafted --problems 10", "--problems: expected at most 9 for this model, got 10"),
        ("grouped --families 0", "--families: expected at least 1, got 0"),
    ],
)
def test_numbers_that_can_not_be_measured_are_refused(argv: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        main(argv.split())
