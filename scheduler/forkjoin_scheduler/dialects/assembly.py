"""Rules for what a dialect's YAML can't say: a thread's prompt that the model names and does not write.

Each is (the text of the branch that forks) -> (a message that it gave) -> the text, or None if it
can't be made. So the text, which may be long, is read once for all messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_NODE = r"(?P<id>[0-9]+(?:,[0-9]+)*)"
_GENERATED = re.compile(
    rf"Generated Node #{_NODE}: (?P<target>-?[0-9]+):\[(?P<numbers>[^\]]*)\] Operation: (?P<operation>[^\n]+)"
)
_CURRENT = re.compile(
    rf"Moving to Node #{_NODE}\nCurrent State: (?P<target>-?[0-9]+):\[(?P<numbers>[^\]]*)\], "
    r"Operations: \[(?P<operations>[^\]]*)\]"
)
_TOKEN_BUDGET = re.compile(r"(?:<s>)*(Token Budget: [0-9]+ )")


def countdown_node(text: str) -> Callable[[str], str | None]:
    """APR: the state of the Countdown search node that a message names, as its searches begin.

    The trace says of a node what it was generated from, or shows its state; a token budget before
    the trace goes to each child.
    """
    trace, budget = _Trace(text), _TOKEN_BUDGET.match(text)
    before = budget[1] if budget else ""

    def made(message: str) -> str | None:
        node = message.strip()
        state = trace.state(node)
        return None if state is None else f"{before}Moving to Node #{node}\n{state}"

    return made


class _Trace:
    """The nodes of a trace, which is read once: a call may name hundreds."""

    def __init__(self, text: str) -> None:
        #: Of each node what is shown of it last, and what it was generated from first.
        self._shown = {m["id"]: m for m in _CURRENT.finditer(text)}
        self._generated: dict[str, re.Match[str]] = {}
        for m in _GENERATED.finditer(text):
            self._generated.setdefault(m["id"], m)

    def state(self, node: str) -> str | None:
        """The state of ``node``; None for one that the trace does not know."""
        if shown := self._shown.get(node):
            return _written(shown["target"], shown["numbers"], shown["operations"])
        if not (first := self._generated.get(node)):
            return None
        before = self._operations(node.rpartition(",")[0])
        if before is None:
            return None
        operations = ", ".join(filter(None, (before, repr(first["operation"].strip()))))
        return _written(first["target"], first["numbers"], operations)

    def _operations(self, node: str) -> str | None:
        """The operations that led to ``node``, as the trace writes a list of them, without brackets.

        None for a node that the trace does not know.
        """
        if not node:
            return ""
        state = self.state(node)
        return None if state is None else state.partition("Operations: [")[2].removesuffix("]")


def _written(target: str, numbers: str, operations: str) -> str:
    return f"Current State: {target}:[{numbers}], Operations: [{operations}]"


RULES: dict[str, Callable[[str], Callable[[str], str | None]]] = {"countdown_node": countdown_node}
