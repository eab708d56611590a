"""What a tag must agree with before it is released."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

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


def test_images_are_pushed_by_the_tag_that_chart_and_kustomize_pull(tmp_path):
    """The workflow's own step runs as GitHub runs it."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    steps = {step["id"]: step for step in workflow["jobs"]["images"]["steps"] if "id" in step}
    output = tmp_path / "output"
    env = {"GITHUB_REF_NAME": f"v{VERSION}", "GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-ec", steps["version"]["run"]], env=env, check=True)
    name, _, value = output.read_text().strip().partition("=")
    tags = steps["build"]["with"]["tags"].replace(f"${{{{ steps.version.outputs.{name} }}}}", value)
    assert tags.endswith(f":{VERSION}")


def test_every_lock_of_npm_is_kept_up_to_date():
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    (npm,) = (u["directories"] for u in updates if u["package-ecosystem"] == "npm")
    locks = subprocess.run(
        ["git", "ls-files", "*package-lock.json"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(npm) == sorted(f"/{Path(lock).parent}" for lock in locks)
