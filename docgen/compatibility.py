"""The tables of docs/compatibility.md that say of each option of ``vllm serve`` what it means for forks.

    python -m docgen.compatibility     writes them into the page, below their headings

They are made of the table that ``forkjoin doctor`` reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from forkjoin_server.doctor.verdicts.others import OTHERS
from forkjoin_server.doctor.verdicts.table import RULES
from forkjoin_server.doctor.verdicts.together import RUN
from forkjoin_server.doctor.verdicts.verdict import Topic, Verdict, flag

PAGE = Path(__file__).parents[1] / "docs/compatibility.md"
_BEGIN, _END = "<!-- Made by `python -m docgen.compatibility`. -->", "<!-- The end of what is made. -->"
_SAID = {
    Verdict.BESIDE: "These do not touch fork/join",
    Verdict.UNTESTED: "Not tested with forks, and not refused by name",
}


def section(topic: Topic) -> str:
    """What is made of a topic."""
    made = _together() if topic is Topic.TOGETHER else (*_rules(topic), *_others(topic))
    return "\n".join((_BEGIN, "", *made, _END))


def _rules(topic: Topic) -> Iterator[str]:
    yield from ("| option | verdict | what works, and what does not | tested in |", "|---|---|---|---|")
    for rule in RULES:
        if rule.topic is topic:
            names, tested = ", ".join(f"`{flag(n)}`" for n in rule.names), f"`{rule.tested}`"
            yield f"| {names} | {rule.verdict.value} | {rule.sentence} | {tested if rule.tested else '–'} |"
    yield ""


def _together() -> Iterator[str]:
    yield from ("| | run together with | tested in |", "|---|---|---|")
    for one, others in RUN.items():
        tests = ", ".join(f"`{test}`" for test in dict.fromkeys(others.values()))
        yield f"| {one} | {', '.join(others)} | {tests} |"
    yield ""


def _others(topic: Topic) -> Iterator[str]:
    for others in OTHERS:
        if others.topic is topic:
            names = ", ".join(f"`{flag(name)}`" for name in others.names)
            yield from (f"{_SAID[others.verdict]}: {names}.", "")


def page(text: str) -> str:
    """The page ``text`` with new tables of each topic. Raises ValueError where a heading is missing."""
    for topic in Topic:
        found = re.search(rf"^## {topic.value}\n", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"expected the heading '## {topic.value}' in {PAGE.name}, found none: add it")
        before, after = text[: found.end()], text[found.end() :]
        made = re.compile(rf"\s*{re.escape(_BEGIN)}.*?{re.escape(_END)}\n", re.DOTALL)
        after = made.sub("", after, count=1) if made.match(after) else after
        text = f"{before}\n{section(topic)}\n{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
