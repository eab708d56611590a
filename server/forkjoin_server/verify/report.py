"""What a verification has found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from forkjoin_scheduler.verify.result import Result, not_run
from forkjoin_server.verify.processes import Ended


@dataclass
class Report:
    """Versions and the device, the results, and what processes wrote that gave none."""

    facts: dict[str, str]
    results: list[Result] = field(default_factory=list)
    #: By the name of a result.
    logs: dict[str, str] = field(default_factory=dict)

    def failed(self, name: str, ended: Ended) -> None:
        """``name`` has no result because its process failed."""
        self.results.append(Result(name, "", "", float("inf"), 0, ended.complaint))
        self.logs[name] = ended.log

    def not_run(self, name: str, ended: Ended, why: str = "") -> None:
        """``name`` could not be verified here."""
        self.results.append(not_run(name, why + ended.complaint))
        self.logs[name] = ended.log

    def as_dict(self) -> dict[str, Any]:
        """For a program."""
        return {
            "ok": all(r.ok for r in self.results),
            "facts": self.facts,
            "results": [r.as_dict() for r in self.results],
            "logs": self.logs,
        }
