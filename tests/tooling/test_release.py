"""What a tag must agree with before it is released."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from scripts.release_check import ROOT, URLS, VERSIONS, faults, notes

VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.M)[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that name the version, with a changelog that has a section for it."""
    for name in VERSIONS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## {VERSION} (a day)\n\n- Forks.\n\n## 0.0.1\n\n- Old.\n"
    )
    return tmp_path


def test_the_repository_names_one_version_everywhere():
    assert [f for f in faults(f"v{VERSION}", ROOT) if not f.startswith("CHANGELOG.md")] == []


def test_a_tag_that_all_agree_with_is_released_with_its_notes(checkout):
    assert faults(f"v{VERSION}", checkout) == []
    assert notes(VERSION, checkout) == "- Forks."


@pytest.mark.parametrize("name", VERSIONS)
def test_a_file_that_was_forgotten_is_named(checkout, name):
    path = checkout / name
    path.write_text(path.read_text().replace(VERSION, "9.9.9"))
    (fault,) = faults(f"v{VERSION}", checkout)
    assert fault.startswith(f"{name}: expected the version {VERSION}, got 9.9.9")


def test_a_version_without_a_section_of_the_changelog_is_not_released(checkout):
    (checkout / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- Forks.\n")
    assert [f.partition(":")[0] for f in faults(f"v{VERSION}", checkout)] == ["CHANGELOG.md"]


def test_a_repository_that_the_packages_do_not_name_releases_nothing(checkout):
    (named,) = set(URLS.findall((ROOT / "pyproject.toml").read_text()))
    assert faults(f"v{VERSION}", checkout, named) == []
    found = faults(f"v{VERSION}", checkout, "someone/else")
    assert [f.partition(":")[0] for f in found] == ["pyproject.toml", "client/pyproject.toml"]


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2", "v1.2.3-rc1", "main"])
def test_a_tag_of_another_form_is_refused(checkout, tag):
    (fault,) = faults(tag, checkout)
    assert "expected one like v1.2.3" in fault
