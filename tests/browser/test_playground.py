"""The playground in Debian's Chromium: each test of ``playground.test.mjs``, on one server of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.browser.pictures import installed
from tests.browser.serving import KEY, playground_server

pytestmark = pytest.mark.server

HERE = Path(__file__).parent
TESTS = (HERE / "playground.test.mjs").read_text()
NAMES = re.findall(r'^test\("([^"]+)"', TESTS, flags=re.M)
NAMES += [f"axe finds nothing serious in the {scheme} page" for scheme in ("light", "dark")]
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """By the name of a test: None if it passed, else what it said."""
    if CHROMIUM is None:
        pytest.skip("expected Debian's Chromium, got no `chromium` on the PATH: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    installed(folder)
    with playground_server(folder) as address:
        command = ["node", "--test", "--test-reporter=junit", "playground.test.mjs"]
        env = os.environ | {"BASE_URL": address, "API_KEY": KEY, "CHROMIUM": CHROMIUM}
        run = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=800, check=False
        )
    # A message may have colours, which no XML may.
    cases = ElementTree.fromstring(_CONTROLS.sub("", run.stdout)).iter("testcase")
    return {case.get("name"): _failure(case) for case in cases}


def _failure(case: ElementTree.Element) -> str | None:
    failure = case.find("failure")
    return None if failure is None else f"{failure.get('message')}\n{failure.text}"


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", NAMES)
def test_in_chromium(outcomes, name):
    assert outcomes[name] is None, outcomes[name]


@pytest.mark.timeout(1500)
def test_every_test_of_the_browsers_is_told_here(outcomes):
    assert sorted(outcomes) == sorted(NAMES)
