"""Every way to deploy renders, and what it renders is what Kubernetes and the CRDs take."""

from __future__ import annotations

import copy

import pytest
import yaml

from tests.deploy.manifests import CHART, SETS, VALUES

VERSIONS = ["1.30", "1.34", "1.37"]
SCHEMAS = str(CHART.parents[2] / "tests/deploy/schemas")


@pytest.fixture(scope="session")
def faults(ask, rendered):
    """Of each set, by all schemas, in one go."""
    answer = ask("judge", manifests=[rendered[name] for name in SETS], versions=VERSIONS, schemas=SCHEMAS)
    return dict(zip(SETS, answer, strict=True))


def test_every_folder_of_manifests_is_rendered(rendered):
    assert set(rendered) == set(SETS)
    assert all(rendered.values())


@pytest.mark.parametrize("name", SETS)
def test_it_is_valid_for_each_kubernetes_and_crd(faults, name):
    assert faults[name] == []


def test_a_set_names_each_thing_once(rendered):
    for manifests in rendered.values():
        ids = [(m["kind"], m["metadata"]["name"]) for m in manifests]
        assert len(ids) == len(set(ids))


#: A field that no version knows, a wrong type, a field of the wrong place: by kind.
BROKEN = {
    "Deployment": lambda m: m["spec"]["template"]["spec"].update(terminationGracePeriod=3),
    "Service": lambda m: m["spec"]["ports"][0].update(port="http"),
    "NetworkPolicy": lambda m: m["spec"].update(ingres=[]),
    "PodDisruptionBudget": lambda m: m["spec"].update(maxUnavailable=True),
    "HorizontalPodAutoscaler": lambda m: m["spec"].update(minReplicas="one"),
    "ScaledObject": lambda m: m["spec"].update(minReplicas=1),
    "ServiceMonitor": lambda m: m["spec"].update(endpoint=[]),
    "PodMonitor": lambda m: m["spec"]["podMetricsEndpoints"][0].update(intervall="1s"),
    "PrometheusRule": lambda m: m["spec"]["groups"][0]["rules"][0].update(severity="x"),
    "LeaderWorkerSet": lambda m: m["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"].update(cpu=1),
    "RayService": lambda m: m["spec"]["rayClusterConfig"].update(workers=1),
    "InferencePool": lambda m: m["spec"].update(targetPortNumber=8000),
    "HTTPRoute": lambda m: m["spec"]["rules"][0]["timeouts"].update(request="soon"),
    "Gateway": lambda m: m["spec"]["listeners"][0].update(protocol="http"),
    "Widget": None,
}


def test_what_is_wrong_is_refused_whatever_kind_it_is(ask, rendered):
    sample = {m["kind"]: m for manifests in rendered.values() for m in manifests}
    assert not BROKEN.keys() - sample.keys() - {"Widget"}
    broken = {kind: copy.deepcopy(sample[kind]) for kind in BROKEN if kind in sample}
    for kind, manifest in broken.items():
        BROKEN[kind](manifest)
    broken["Widget"] = {
        "apiVersion": "example.com/v1",
        "kind": "Widget",
        "metadata": {"name": "x"},
        "spec": {},
    }
    answer = ask("judge", manifests=[[m] for m in broken.values()], versions=VERSIONS, schemas=SCHEMAS)
    assert [kind for kind, faults in zip(broken, answer, strict=True) if not faults] == []


@pytest.mark.parametrize("name", VALUES)
def test_helm_lint_finds_nothing_with(ask, name):
    file = VALUES[name]
    assert ask("lint", chart=str(CHART), values=yaml.safe_load(file.read_text()) if file else {}) == []


def test_the_chart_refuses_values_that_it_does_not_know_or_that_can_not_be(ask):
    wrong = [
        {"replica": 2},
        {"replicas": "two"},
        {"model": {"uri": "Qwen/Qwen3-8B"}},
        {"models": [{"name": "a", "replica": 2}]},
        {"drain": {"marginSeconds": 0}},
        {"image": {"digest": "latest"}},
        {"server": {"config": {"api-key": "secret"}}},
        {"server": {"extraArgs": ["--api-key=secret"]}},
        {"autoscaling": {"kind": "vpa"}},
        {"resources": {"requests": {"memory": "lots"}}},
        {"multiNode": {"enabled": True}},
        {
            "multiNode": {"enabled": True},
            "autoscaling": {"kind": "keda"},
            "model": {"uri": "hf://m"},
        },
    ]
    taken = [values for values in wrong if "refused" not in ask("render", chart=str(CHART), values=values)]
    assert taken == []


def test_the_schema_says_of_every_value_what_it_may_be(ask):
    """So none is passed through unseen: each key of values.yaml is a property of the schema."""
    import json

    schema = json.loads((CHART / "values.schema.json").read_text())

    def unknown(values, schema, path):
        for key, value in values.items():
            if key not in schema.get("properties", {}):
                if not schema.get("additionalProperties", True):
                    yield f"{path}.{key}"
            elif isinstance(value, dict):
                yield from unknown(value, schema["properties"][key], f"{path}.{key}")

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert list(unknown(values, schema, "")) == []
    assert schema["additionalProperties"] is False
    assert values.keys() == schema["properties"].keys() - {"global"}
