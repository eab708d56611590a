"""The dashboard's panels, and their pictures: what Grafana would show of them, drawn by matplotlib."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from forkjoin.terminal.drawing import Theme, bare, figure
from tests.deploy.manifests import CHART

DASHBOARD = CHART / "files/dashboard.json"
_COLUMNS, _WIDTH, _HEIGHT = 3, 12.0, 2.6
#: The variables of Grafana, filled in for one server that is scraped each second.
_VARIABLES = {"$__rate_interval": "15s", "$namespace": ".*", "$pod": ".*", "$model": ".*"}
_UNITS = {"percentunit": "part of 1", "s": "seconds", "reqps": "a second"}


@dataclass(frozen=True)
class Target:
    """A query, and how its series are named."""

    query: str
    legend: str

    def name(self, labels: dict[str, str]) -> str:
        """The name of a series with these ``labels``."""
        return re.sub(r"\{\{(\w+)\}\}", lambda m: labels.get(m[1], ""), self.legend).strip()


@dataclass(frozen=True)
class Panel:
    """One panel."""

    title: str
    unit: str
    targets: tuple[Target, ...]


@dataclass
class Row:
    """A row of the dashboard."""

    title: str
    panels: list[Panel] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """Its title in a file's name."""
        return re.sub(r"\W+", "-", self.title.lower())

    def picture(self, folder: Path, suffix: str = "") -> Path:
        """Where its picture lies in ``folder``."""
        return folder / f"dashboard-{self.slug}{suffix}.svg"


#: A line: its name, and its values by seconds.
Line = tuple[str, list[float], list[float]]


def rows(dashboard: Path = DASHBOARD) -> list[Row]:
    """The rows of the dashboard with their panels."""
    found: list[Row] = []
    for panel in json.loads(dashboard.read_text())["panels"]:
        if panel["type"] == "row":
            found.append(Row(panel["title"]))
            continue
        targets = tuple(Target(_filled(t["expr"]), t["legendFormat"]) for t in panel["targets"])
        unit = panel["fieldConfig"]["defaults"]["unit"]
        found[-1].panels.append(Panel(panel["title"], unit, targets))
    return found


def _filled(query: str) -> str:
    for name, value in _VARIABLES.items():
        query = query.replace(name, value)
    return query


def lines(client: httpx.Client, panel: Panel, start: float, end: float) -> list[Line]:
    """What Prometheus has for ``panel`` between two times, of each series with a value in it."""
    found = []
    for target in panel.targets:
        asked = {"query": target.query, "start": start, "end": end, "step": 2}
        answer = client.get("/query_range", params=asked)
        assert answer.status_code == 200, (target.query, answer.text)
        for series in answer.json()["data"]["result"]:
            values = [(float(at) - start, float(value)) for at, value in series["values"]]
            finite = [(at, value) for at, value in values if math.isfinite(value)]
            if finite:
                found.append((target.name(series["metric"]), *map(list, zip(*finite, strict=True))))
    return found  # type: ignore[return-value]


def draw_row(row: Row, of_panels: dict[str, list[Line]], path: Path, theme: Theme) -> None:
    """Draw ``row`` into ``path``; ``of_panels``: the lines of each panel by its title."""
    num_rows = -(-len(row.panels) // _COLUMNS)
    with figure(path, theme, _WIDTH, _HEIGHT * num_rows + 0.3) as drawn:
        drawn.suptitle(row.title, color=theme.ink, fontsize=11)
        for i, panel in enumerate(row.panels):
            _panel(drawn.add_subplot(num_rows, _COLUMNS, i + 1), panel, of_panels[panel.title], theme)


def _panel(axes: Any, panel: Panel, drawn: list[Line], theme: Theme) -> None:
    bare(axes, theme)
    axes.grid(axis="y", color=theme.faint, alpha=0.2, linewidth=0.6)
    for (name, at, values), colour in zip(drawn, theme.threads * len(drawn), strict=False):
        axes.plot(at, values, label=name, color=colour, linewidth=1.2)
    axes.set_title(panel.title, color=theme.ink, fontsize=9)
    axes.set_ylabel(_UNITS.get(panel.unit, ""), color=theme.faint, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.set_ylim(0, None)
    # those that are above 0 say something; with many, a legend of all would hide them
    named = [name for name, _, values in drawn if any(values)] or [drawn[0][0]]
    handles = [line for line in axes.get_lines() if line.get_label() in named][:6]
    axes.legend(handles=handles, frameon=False, labelcolor=theme.ink, fontsize=6, loc="best")
