"""The example configurations are what ``forkjoin serve`` takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.settings import Settings
from forkjoin_server.start.configuration import EMBEDDED_MODEL, resolve
from forkjoin_server.start.effective import effective, lines

FOLDER = Path(__file__).parents[3] / "configs/examples"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
GPUS = {"one": 1, "two": 2, "eight": 8}


@pytest.fixture(autouse=True)
def _no_other_arguments(monkeypatch):
    """vLLM's parser looks at the process's own."""
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_taken_and_each_of_its_keys_reaches_its_place(path):
    keys = yaml.safe_load(path.read_text())
    given = resolve(["--config", str(path)], {})
    settings = Settings.model_validate(given.args.additional_config["forkjoin"])
    assert settings.dialect.name == keys["dialect"]
    assert given.args.model == keys.get("model", str(EMBEDDED_MODEL))
    shown = {v.name: v for v in effective(given)}
    assert {k: shown[k].origin for k in keys} == dict.fromkeys(keys, f"file {path}")
    for key in keys.keys() - {"served-model-name"}:
        assert shown[key].value == str(keys[key])
    assert len(lines(list(shown.values()))) > len(keys)


def test_every_dialect_that_is_no_variant_has_an_example():
    shown = {name for name in builtin_names() if load(name).variant_of is None}
    assert {yaml.safe_load(p.read_text())["dialect"] for p in EXAMPLES} == shown


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_examples_name_says_its_machine_and_its_first_line_what_it_is(path):
    size = yaml.safe_load(path.read_text()).get("tensor-parallel-size", 1)
    named = re.match(r"(one|two|eight)-gpu-|laptop-cpu|cpu-server-", path.name)
    assert named is not None
    assert size == GPUS.get(named[1], 1)
    assert path.read_text().startswith("# ")
