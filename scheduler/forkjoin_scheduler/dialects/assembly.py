"""Rules for what a dialect's YAML can't say: a thread's prompt that the model names and does not write.

Each is (the text of the branch that forks, the message that it gave) -> the text, or None if it
can't be made.
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


def countdown_node(text: str, message: str) -> str | None:
    """APR: the state of the Countdown search node that the message names, as its searches begin.

    The trace says of a node what it was generated from, or shows its state; a token budget before
    the trace goes to each child.
    """
    state = _state(text, message.strip())
    budget = _TOKEN_BUDGET.match(text)
    return (
        None
        if state is None
        else (budget[1] if budget else "") + f"Moving to Node #{message.strip()}\n{state}"
    )


def _state(text: str, node: str) -> str | None:
    shown = [m for m in _CURRENT.finditer(text) if m["id"] == node]
    if shown:
        return _written(shown[-1]["target"], shown[-1]["numbers"], shown[-1]["operations"])
    generated = [m for m in _GENERATED.finditer(text) if m["id"] == node]
    if not generated:
        return None
    first = generated[0]
    before = _operations(text, node.rpartition(",")[0])
    if before is None:
        return None
    operations = ", ".join(filter(None, (before, repr(first["operation"].strip()))))
    return _written(first["target"], first["numbers"], operations)


def _operations(text: str, node: str) -> str | None:
    """The operations that led to ``node``, as the trace writes a list of them, without brackets.

    None for a node that the trace does not know.
    """
    if not node:
        return ""
    state = _state(text, node)
    return None if state is None else state.partition("Operations: [")[2].removesuffix("]")


def _written(target: str, numbers: str, operations: str) -> str:
    return f"Current State: {target}:[{numbers}], Operations: [{operations}]"


RULES: dict[str, Callable[[str, str], str | None]] = {"countdown_node": countdown_node}
