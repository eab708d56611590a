"""Run by the Python of build/deploy-tools, which has what judges manifests: a question on stdin, its answer
on stdout, both JSON. See ``conftest.py`` for who asks.

    {"do": "render", "chart": path, "values": {…}}    -> {template: text}; {"refused": why}
    {"do": "lint", "chart": path, "values": {…}}      -> [finding]
    {"do": "judge", "manifests": [[…], …], "versions": ["1.30"], "schemas": path} -> [[fault] of each list]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def render(question: Json) -> Json:
    from helm_python import Chart, HelmError

    try:
        with Chart.load(question["chart"]) as chart:
            return chart.render(values=question["values"], name="forkjoin", namespace="llm")
    except HelmError as error:
        return {"refused": str(error)}


def lint(question: Json) -> list[str]:
    from helm_python import lint

    report = lint(question["chart"], values=question["values"], strict=True, namespace="llm")
    return report["errors"] + [m["error"] for m in report["messages"] if m["severity"] >= 2]


def judge(question: Json) -> list[list[str]]:
    schemas = Path(question["schemas"])
    return [
        [fault for m in manifests for fault in _faults(m, question["versions"], schemas)]
        for manifests in question["manifests"]
    ]


def _faults(manifest: Json, versions: list[str], schemas: Path) -> Iterator[str]:
    """What is wrong with ``manifest`` and with the pods in it, by the schemas of Kubernetes or of its CRD."""
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    if schema := _schema_of_crd(manifest["apiVersion"], manifest["kind"], schemas):
        yield from (f"{name}: {fault}" for fault in _by_schema(manifest, schema))
        for template in _pod_templates(manifest["spec"]):
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": template}
            yield from (f"{name}: {fault}" for v in versions for fault in _by_kubernetes(pod, v))
    else:
        yield from (f"{name}: {fault}" for v in versions for fault in _by_kubernetes(manifest, v))


def _by_kubernetes(manifest: Json, version: str) -> Iterator[str]:
    import kubernetes_validate as kubernetes

    # It reads a megabyte of definitions anew for each manifest.
    if not hasattr(kubernetes.utils.schema_contents, "cache_info"):
        kubernetes.utils.schema_contents = cache(kubernetes.utils.schema_contents)
    try:
        kubernetes.validate(manifest, version, strict=True)
    except kubernetes.ValidationError as error:
        yield f"{version}: {'.'.join(map(str, error.path))}: {error.message[:300]}"
    except kubernetes.SchemaNotFoundError as error:
        yield f"{version}: {error.message}"


def _by_schema(manifest: Json, schema: Json) -> Iterator[str]:
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema).iter_errors(manifest):
        yield f"{'.'.join(map(str, error.path))}: {error.message[:300]}"


def _pod_templates(node: Any) -> Iterator[Json]:
    """Every pod template in a custom resource's spec: they are opaque to its schema."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key in ("template", "leaderTemplate", "workerTemplate"):
            yield value
        else:
            for child in value if isinstance(value, list) else [value]:
                yield from _pod_templates(child)


@cache
def _schema_of_crd(api_version: str, kind: str, schemas: Path) -> Json | None:
    """A strict schema: from a package where one has it, else one of ours, of the fields that we use."""
    if source := _packaged().get((api_version, kind)):
        return _strict(source().model_json_schema())
    import yaml

    for file in schemas.glob("*.yaml"):
        schema = yaml.safe_load(file.read_text())
        if (schema["apiVersion"], schema["kind"]) == (api_version, kind):
            return _strict(
                {
                    "type": "object",
                    "required": ["apiVersion", "kind", "metadata", "spec"],
                    "properties": {
                        "apiVersion": {"const": api_version},
                        "kind": {"const": kind},
                        "metadata": {"type": "object"},
                        "spec": schema["spec"],
                    },
                }
            )
    return None


def _packaged() -> dict[tuple[str, str], Callable[[], Any]]:
    def keda(kind: str) -> Callable[[], Any]:
        from cloudcoil.models.keda import v1alpha1

        return lambda: getattr(v1alpha1, kind)

    def prometheus(kind: str) -> Callable[[], Any]:
        from cloudcoil.models.prometheus_operator import v1

        return lambda: getattr(v1, kind)

    return {("keda.sh/v1alpha1", "ScaledObject"): keda("ScaledObject")} | {
        ("monitoring.coreos.com/v1", kind): prometheus(kind)
        for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule")
    }


def _strict(schema: Any) -> Any:
    """``schema`` that refuses fields it does not name."""
    if isinstance(schema, list):
        return [_strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {k: _strict(v) for k, v in schema.items()}
    if isinstance(strict.get("properties"), dict) and "additionalProperties" not in strict:
        strict["additionalProperties"] = False
    return strict


if __name__ == "__main__":
    question = json.load(sys.stdin)
    answer = {"render": render, "lint": lint, "judge": judge}[question["do"]](question)
    json.dump(answer, sys.stdout)
