"""Runs the code of the notebook ``rl_on_trees.ipynb``, cell after cell. Then compares critical paths with the engine's.

Prints what it saw as JSON.
"""

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

from forkjoin_scheduler.publish.events import FamilyEnded
from forkjoin_scheduler.publish.feed import FEEDS

NOTEBOOK = Path(sys.argv[1])
sys.path.insert(0, str(NOTEBOOK.parent))  # Jupyter runs a notebook in its folder
cells = json.loads(NOTEBOOK.read_text())["cells"]
names = {}
for number, cell in enumerate(cells):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)

from worksheets import draw_worksheet  # noqa: E402 (the notebook's folder is on the path now)

ended = []
FEEDS.observers.append(lambda event, _: ended.append(event) if isinstance(event, FamilyEnded) else None)
paths = []
for seed in range(3):
    sheet = draw_worksheet(random.Random(seed), held_out=True)
    ((answer,),) = names["actor"].groups([sheet], 1, seed=seed)
    own = ended.pop() if answer.forks else None
    counts = [answer.num_steps, answer.num_tokens]
    paths.append(
        [counts, counts if own is None else [own.critical_path_tokens, own.total_tokens], answer.forks]
    )

print(
    "SEEN",
    json.dumps(
        {
            "measured": {name: asdict(value) for name, value in names["measured"].items()},
            "rounds": [asdict(done) for done in names["rounds"]],
            "paths": paths,
        }
    ),
)
