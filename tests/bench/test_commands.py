"""The commands of benchmarks that the docs show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from forkjoin_bench.cli import parser

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
