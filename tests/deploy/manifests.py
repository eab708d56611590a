"""What the tests of the deployment files know of them: where they are, and what is in a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm/vllm-forkjoin"
#: The values that we ship, by name, and the chart's defaults.
VALUES: dict[str, Path | None] = {"helm defaults": None} | {
    f"helm {file.stem}": file for file in sorted((DEPLOY / "helm/values").glob("*.yaml"))
}
SETS = [*VALUES, "kustomize/base", "kustomize/gpu", "gateway", "kuberay"]


class Loader(yaml.SafeLoader):
    """YAML, in which a key that stands twice is an error and not the last one's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} stand twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parse(text: str) -> list[Manifest]:
    """The manifests of a YAML stream."""
    return [m for m in yaml.load_all(text, Loader) if m]


@dataclass(frozen=True)
class Pod:
    """A pod that a manifest makes."""

    owner: Manifest
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}/{self.spec['containers'][0]['name']}"


def pods(manifests: list[Manifest]) -> list[Pod]:
    """Every pod template, wherever it stands."""

    def templates(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            if "containers" in node.get("spec", {}) and "metadata" in node:
                yield node
            for child in node.values():
                yield from templates(child)
        elif isinstance(node, list):
            for child in node:
                yield from templates(child)

    return [Pod(m, t["metadata"].get("labels", {}), t["spec"]) for m in manifests for t in templates(m)]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector of Kubernetes (`matchLabels`, `In`) takes what has ``labels``."""
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", [])
    )


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] in kinds]
