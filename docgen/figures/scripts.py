"""The requests of the figures: the same question, in the format of a dialect for each kind of join."""

from __future__ import annotations

from docgen.figures.recorded import Script

#: Tokens that each thread writes. The first ends first, and the last ends last.
LENGTHS = (22, 36, 52)
_PROMPT = "Is n even, odd or zero? Look at each case."

REPREFILL = Script(
    "threadweaver",
    _PROMPT,
    "<Parallel><Outlines><Outline>1: even</Outline><Outline>2: odd</Outline><Outline>3: "
    "0</Outline></Outlines>",
    tuple("x" * length + "</Thread>" for length in LENGTHS),
    "</Parallel>So in all",
)
STITCH = Script(
    "multiverse",
    _PROMPT,
    "<Parallel><Goal><Outline>1: even</Outline><Outline>2: odd</Outline><Outline>3: 0</Outline></Goal>",
    tuple("x" * length + "</Path>" for length in LENGTHS),
    "</Conclusion>So in all",
)
_NODE = "Moving to Node #0\nCurrent State: 5:[1, 2], Operations: []\n"
_CALLS = "".join(f"<Start Sub Search {n} at level 1> Moving to Node #0\n" for n in range(3))
REWRITE = Script(
    "apr",
    _PROMPT + _NODE,
    f"<Calling Sub Searches>\n{_CALLS}<End Calling Sub Searches>\n<|end|>",
    tuple("x" * length + "Goal Reached\n 5 Goal Reached<|end|>" for length in LENGTHS),
    "So in all",
)
