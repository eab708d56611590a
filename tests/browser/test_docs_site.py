"""The docs site in Debian's Chromium, read from a disk: it is searched, and switched to dark."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser.pictures import installed

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a browser saw of the site."""
    if CHROMIUM is None:
        pytest.skip("expected Debian's Chromium, got no `chromium` on the PATH: apt-get install chromium")
    folder, site = tmp_path_factory.mktemp("browser"), tmp_path_factory.mktemp("site")
    installed(folder)
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    subprocess.run(build, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True, timeout=300)
    env = os.environ | {"FOLDER": str(site), "CHROMIUM": CHROMIUM}
    run = subprocess.run(
        ["node", "docs_site.mjs"], cwd=folder, env=env, capture_output=True, text=True, timeout=400
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_the_search_finds_a_flag_without_a_server(seen):
    assert ".html" in seen["found"]
    assert seen["elsewhere"] == []


def test_the_switch_leads_from_the_systems_colours_to_light_and_to_dark(seen):
    assert seen["schemes"] == ["default", "default", "slate"]
