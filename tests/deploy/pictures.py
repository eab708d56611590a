"""Draw each panel of the dashboard from what a real server under a short load exposes.

python -m tests.deploy.pictures docs
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from forkjoin.terminal.drawing import DARK, LIGHT
from tests.deploy.live import ASKED, body, prometheus, wait_for
from tests.deploy.manifests import ROOT
from tests.deploy.panels import Line, draw_row, lines, rows
from tests.server.conftest import start_server

#: Few slots and blocks, so that requests wait; drafts, so that some are right.
DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
FLAGS = ["--max-num-seqs", "4", "--draft-from", "family", "--speculative-config", json.dumps(DRAFTS)]
#: Clients that ask one after the other, and how often each does.
NUM_CLIENTS, NUM_ASKED = 3, 4


def load(address: str) -> None:
    """Ask in turn for a fork, a fork that meets a limit, and a vote."""

    def client(number: int) -> None:
        for i in range(NUM_ASKED):
            asked = body(ASKED[(number + i) % len(ASKED)])
            httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=600).raise_for_status()

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(client, range(NUM_CLIENTS)))


def measure(tools: Path) -> dict[str, list[Line]]:
    """The lines of each panel by its title. Raises RuntimeError where a panel has none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            start_server(folder / "log", *FLAGS) as (address, _),
            prometheus(tools, folder, address) as client,
        ):
            wait_for(client, "forkjoin:votes_total == 0")
            start = time.time()
            load(address)
            end = time.time()
            found = {p.title: lines(client, p, start, end) for row in rows() for p in row.panels}
    if empty := [title for title, drawn in found.items() if not drawn]:
        raise RuntimeError(f"expected data for each panel, got none for {', '.join(empty)}")
    return found


def main() -> None:
    """Write the pictures into the folder that is named."""
    into = Path(sys.argv[1])
    done = subprocess.run(
        [ROOT / "scripts/install-deploy-tools"], stdout=subprocess.PIPE, text=True, check=True
    )
    found = measure(Path(done.stdout.splitlines()[-1]) / "bin")
    for row in rows():
        for theme, suffix in ((LIGHT, ""), (DARK, "-dark")):
            draw_row(row, found, row.picture(into, suffix), theme)


if __name__ == "__main__":
    main()
