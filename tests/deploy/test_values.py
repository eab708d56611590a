"""What single values of the chart make, beside the files of values that we ship."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.hardening import faults
from tests.deploy.manifests import CHART, of_kind, parse, pods, selects
from tests.deploy.test_schemas import SCHEMAS, VERSIONS

_GROUPS = {
    "multiNode": {"enabled": True},
    "model": {"source": "claim", "claim": {"name": "models", "path": "m"}},
}
_LIMITS = {"cpu": "1", "memory": "1Gi"}
_MOUNT = {"name": "certificates", "mountPath": "/certificates"}
_MORE_IN_PODS = {
    "initContainers": [
        {
            "name": "fetch",
            "image": "registry.example/fetch:1",
            "resources": {"requests": _LIMITS, "limits": _LIMITS},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [_MOUNT],
        }
    ],
    "extraVolumes": [{"name": "certificates", "configMap": {"name": "certificates"}}],
    "extraVolumeMounts": [_MOUNT | {"readOnly": True}],
}
_DOORS = {
    "ingress": {"enabled": True, "hosts": ["llm.example.com"], "tls": [{"secretName": "llm"}]},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["llm.example.com"]},
}
_SPARE = {"maxSurge": 1, "maxUnavailable": 0}
_COLLECTORS = {
    "http://collector:4317": 4317,
    "http://collector:4318/v1/traces": 4318,
    "http://[fd00::1]:5317": 5317,
    "collector.monitoring": 4317,
}

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "spare": {"strategy": {"rollingUpdate": _SPARE}},
    "recreate": {"strategy": {"type": "Recreate"}},
    "long drain": {"router": {"enabled": True}, "drain": {"seconds": 300}},
    "routers": {"router": {"enabled": True, "autoscaling": {"enabled": True, "maxReplicas": 9}}},
    "hpa without a dialect": {"autoscaling": {"kind": "hpa"}, "dialect": {"name": "none"}},
    "keda without a dialect": {"autoscaling": {"kind": "keda"}, "dialect": {"name": "none"}},
    "hub": {"networkPolicy": {"egressToHub": True}},
    "groups": _GROUPS,
    "more in pods": _MORE_IN_PODS,
    "more in groups": _GROUPS | _MORE_IN_PODS,
    "doors": _DOORS,
    "doors to routers": _DOORS | {"router": {"enabled": True}},
} | {endpoint: {"server": {"config": {"otlp-traces-endpoint": endpoint}}} for endpoint in _COLLECTORS}


@pytest.fixture(scope="session")
def made(ask):
    """The manifests that each case's values make."""
    found = {}
    for name, values in CASES.items():
        templates = ask("render", chart=str(CHART), values=values)
        assert "refused" not in templates, (name, templates)
        found[name] = [m for file, text in templates.items() if file.endswith(".yaml") for m in parse(text)]
    return found


def test_all_of_them_are_valid_and_hardened(ask, made):
    judged = ask("judge", manifests=list(made.values()), versions=VERSIONS[-1:], schemas=SCHEMAS)
    assert [name for name, found in zip(made, judged, strict=True) if found] == []
    assert [name for name, manifests in made.items() if faults(manifests)] == []


def _server(manifests):
    return next(d for d in of_kind(manifests, "Deployment") if not d["metadata"]["name"].endswith("-router"))


def test_a_rollout_needs_no_spare_machine_unless_it_is_told_that_there_is_one(made):
    strategies = [_server(made[name])["spec"]["strategy"] for name in ("defaults", "spare", "recreate")]
    assert strategies == [
        {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        {"type": "RollingUpdate", "rollingUpdate": _SPARE},
        {"type": "Recreate"},
    ]


def test_a_router_has_as_long_to_drain_as_its_servers(made):
    graces = {
        p.spec["containers"][0]["name"]: p.spec["terminationGracePeriodSeconds"]
        for p in pods(made["long drain"])
    }
    assert graces == {"router": 340, "server": 340}


def test_routers_scale_by_cpu_where_asked(made):
    (scaler,) = of_kind(made["routers"], "HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]["name"]
    (router,) = (d for d in of_kind(made["routers"], "Deployment") if d["metadata"]["name"] == target)
    assert target.endswith("-router")
    assert scaler["spec"]["maxReplicas"] == 9
    assert "replicas" not in router["spec"]


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_without_a_dialect_no_scaler_asks_for_metrics_of_fork_join(made, kind):
    (scaler,) = of_kind(made[f"{kind} without a dialect"], "HorizontalPodAutoscaler", "ScaledObject")
    assert "forkjoin:" not in str(scaler)
    assert "forkjoin_" not in str(scaler)
    assert "num_requests_waiting" in str(scaler)


@pytest.mark.parametrize("endpoint", _COLLECTORS)
def test_traces_may_leave_to_their_collector(made, endpoint):
    (policy,) = of_kind(made[endpoint], "NetworkPolicy")
    egress = policy["spec"]["egress"]
    assert [p["port"] for rule in egress if "to" not in rule for p in rule["ports"]] == [
        _COLLECTORS[endpoint]
    ]
    assert 53 in [p["port"] for rule in egress for p in rule["ports"]]


def test_the_hub_is_reached_over_ipv6_too_and_private_addresses_are_not(made):
    (policy,) = of_kind(made["hub"], "NetworkPolicy")
    targets = [to for rule in policy["spec"]["egress"] for to in rule.get("to", [])]
    blocks = [to["ipBlock"] for to in targets if "ipBlock" in to]
    assert [b["cidr"] for b in blocks] == ["0.0.0.0/0", "::/0"]
    assert all(b["except"] for b in blocks)


def test_a_disruption_budget_counts_the_workers_of_a_group(made):
    (budget,) = of_kind(made["groups"], "PodDisruptionBudget")
    assert [selects(budget["spec"]["selector"], p.labels) for p in pods(made["groups"])] == [True, True]


@pytest.mark.parametrize(("name", "num"), [("more in pods", 1), ("more in groups", 2)])
def test_pods_take_volumes_and_containers_of_the_operators(made, name, num):
    found = pods(made[name])
    assert len(found) == num
    for pod in found:
        assert [c["name"] for c in pod.spec["initContainers"]] == ["fetch"]
        assert "certificates" in [v["name"] for v in pod.spec["volumes"]]
        assert "/certificates" in [m["mountPath"] for m in pod.spec["containers"][0]["volumeMounts"]]


@pytest.mark.parametrize("name", ["doors", "doors to routers"])
def test_an_ingress_and_a_route_lead_to_the_service(made, name):
    service = of_kind(made[name], "Service")[0]
    (ingress,), (route,) = of_kind(made[name], "Ingress"), of_kind(made[name], "HTTPRoute")
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == service["metadata"]["name"]
    assert backend["port"]["name"] in [p["name"] for p in service["spec"]["ports"]]
    (target,) = route["spec"]["rules"][0]["backendRefs"]
    assert target == {"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ingress": {"enabled": True}}, "ingress.hosts: expected at least one"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs: expected at least one"),
        ({"strategy": {"type": "Sometimes"}}, "strategy"),
        ({"router": {"terminationGracePeriodSeconds": 3}}, "terminationGracePeriodSeconds"),
    ],
)
def test_what_can_not_be_made_is_refused_by_its_name(ask, values, said):
    assert said in ask("render", chart=str(CHART), values=values)["refused"]
