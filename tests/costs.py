"""What tests cost, by file, in CPU seconds of their processes and of the ones that these started: ``--costs``.

For ``tests/tiers.py``. Wall time would also say what else the machine does.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest

PROPERTY = "cpu_s"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note at a test's end what was used since the end of the one before it in this process."""
    if call.when == "teardown":
        now = sum(os.times()[:4])
        item.user_properties.append((PROPERTY, now - item.config.stash.get(_BEFORE, 0.0)))
        item.config.stash[_BEFORE] = now
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A line a file, the dearest first."""
    if not config.getoption("costs"):
        return
    costs: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                costs[report.nodeid.split("::")[0]] += dict(report.user_properties).get(PROPERTY, 0)
    terminalreporter.section(f"CPU seconds: {sum(costs.values()):.0f}")
    for file, seconds in costs.most_common():
        terminalreporter.write_line(f"{seconds:7.1f} {file}")


_BEFORE = pytest.StashKey[float]()
