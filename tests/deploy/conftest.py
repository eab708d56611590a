"""The deployment files as they would reach a cluster, and the tools that judge them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import CHART, DEPLOY, VALUES, Manifest, parse
from tests.installing import programs


@pytest.fixture(scope="session")
def tools() -> Path:
    """Where the tools are."""
    return programs("install-deploy-tools")


Ask = Callable[..., Any]


@pytest.fixture(scope="session")
def ask(tools: Path) -> Ask:
    """What ``in_tools.py`` answers."""

    def ask(do: str, **question: Any) -> Any:
        done = subprocess.run(
            [tools / "python", Path(__file__).parent / "in_tools.py"],
            input=json.dumps({"do": do, **question}),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return ask


@pytest.fixture(scope="session")
def rendered(ask: Ask) -> dict[str, list[Manifest]]:
    """Every way to deploy that we ship, by name: its manifests."""
    sets = {}
    for name, file in VALUES.items():
        values = yaml.safe_load(file.read_text()) if file else {}
        templates = ask("render", chart=str(CHART), values=values)
        assert "refused" not in templates, templates
        sets[name] = [m for path, text in templates.items() if path.endswith(".yaml") for m in parse(text)]
    for folder in ("kustomize/base", "kustomize/gpu", "gateway"):
        command = ["kubectl", "kustomize", DEPLOY / folder]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        sets[folder] = parse(done.stdout)
    sets["kuberay"] = parse((DEPLOY / "kuberay/rayservice.yaml").read_text())
    return sets
