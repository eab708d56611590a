"""APR: a turn that ends with a call starts searches, whose results take its place in the context."""

from __future__ import annotations

import re

from tests.reference_clients.completions import Completions

OPENS, CLOSES, RESULTS = "<Calling Sub Searches>", "<End Calling Sub Searches>", "<Sub Searches>"
_SEARCH = re.compile(r"<Start Sub Search [0-9]+ at level [0-9]+> Moving to Node #([^\n]*)")
_SHOWN = re.compile(r"Moving to Node #([0-9,]+)\n(Current State: [^\n]*)")
_MADE = re.compile(r"Generated Node #([0-9,]+): ([^\n]*?) Operation: ([^\n]*)")


def answer(model: Completions, prompt: str, max_tokens: int | None = None) -> str:
    """All that follows ``prompt`` in the end, calls not taken away."""
    context, shown, num_forks = prompt, "", 0
    while True:
        text, as_written = _turn(model, context, "", None)
        context, shown = context + text, shown + as_written
        if not (text.rstrip().endswith(CLOSES) and OPENS in context):
            return shown
        before, _, call = context.rpartition(OPENS)
        states = [(node, _state(context, node.strip())) for node in _SEARCH.findall(call)]
        searches = [(node, state) for node, state in states if state is not None]
        if not searches:
            return shown
        block = f"{RESULTS}\n"
        for i, (node, state) in enumerate(searches):
            header = f"<s>Moving to Node #{node.strip()}\n{state}"
            found = _turn(model, header, f"/{num_forks}.{i}", max_tokens)[0]
            block += _result(i, node, found)
        block += "<End Sub Searches>\n"
        context, shown = before + block, shown + block
        num_forks += 1


def _turn(model: Completions, context: str, path: str, max_tokens: int | None) -> tuple[str, str]:
    """What is in the context after a turn, and what was written: results that it begins become a call."""
    text = as_written = ""
    while True:
        piece = model.write(context + text, [RESULTS], branch=path, max_tokens=max_tokens)
        as_written += piece.text
        if piece.stop is None:
            return text + piece.text, as_written
        text += piece.text.removesuffix(RESULTS) + OPENS
        as_written += OPENS


def _result(place: int, node: str, found: str) -> str:
    """What stands in the call's place of a search: what it wrote after its second to last goal."""
    goals = found.split("Goal Reached")
    if len(goals) < 3:
        return f"<No Solution in Sub Search {place} at level 1 at Node #{node}>\n"
    path = f"{goals[-2]}Goal Reached{goals[-1]}".strip()
    return f"<Goal Reached in Sub Search {place} at level 1 at Node #{node}>\n{path}\n"


def _state(trace: str, node: str) -> str | None:
    """The state of ``node``, as the trace shows it or has made it."""
    for name, state in reversed(_SHOWN.findall(trace)):
        if name == node:
            return str(state)
    for name, state, operation in _MADE.findall(trace):
        if name == node:
            parent = _state(trace, node.rpartition(",")[0]) if "," in node else ""
            if parent is None:
                return None
            before = parent.partition("Operations: [")[2].removesuffix("]")
            operations = ", ".join(filter(None, [before, repr(operation.strip())]))
            return f"Current State: {state}, Operations: [{operations}]"
    return None
