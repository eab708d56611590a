"""docs/configuration.md names every flag, variable and check, as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from forkjoin_server.start.configuration import resolve
from forkjoin_server.start.environment import MORE, variable
from forkjoin_server.start.flags import own_flags

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs/configuration.md").read_text()


@pytest.mark.parametrize(("name", "action"), own_flags().items(), ids=own_flags())
def test_a_flag_of_ours_is_told_with_its_variable_and_its_help(name, action):
    value = (action.metavar or " or ".join(action.choices)).replace("|", " or ")
    assert GUIDE.count(f"\n| `--{name}` {value} | `{variable(name)}` | {action.help} |\n") == 1


def test_no_variable_is_told_that_there_is_not():
    told = set(re.findall(r"`(FORKJOIN_\w+)`", GUIDE.partition("except those that Kubernetes")[0]))
    assert told == {variable(name) for name in (*own_flags(), *MORE)}


def test_every_check_of_the_doctors_is_told():
    told = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", GUIDE, flags=re.M))))
    sources = (ROOT / "server/forkjoin_server/doctor").rglob("*.py")
    made = {
        name for path in sources for name in re.findall(r'(?:ok|warn|fail)\(\s*"(\w+)"', path.read_text())
    }
    assert told == made


def test_the_file_that_is_shown_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])
    text = GUIDE.partition("with dashes or underscores.\n")[2].partition("\n- ")[0]
    path = tmp_path / "serve.yaml"
    path.write_text("\n".join(line.removeprefix("    ") for line in text.splitlines()))
    assert resolve(["--config", str(path)], {}).args.model == yaml.safe_load(path.read_text())["model"]


@pytest.mark.parametrize("path", ["docs/configuration.md", "configs/examples/README.md"])
def test_no_link_is_broken(path):
    file = ROOT / path
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text()):
        assert (file.parent / target).exists(), target
