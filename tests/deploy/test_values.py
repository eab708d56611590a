"""What single values of the chart make, beside the files of values that we ship."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.deploy.hardening import faults
from tests.deploy.manifests import CHART, of_kind, parse, pods, selects
from tests.deploy.test_schemas import SCHEMAS, VERSIONS

_GROUPS = {
    "multiNode": {"enabled": True},
    "model": {"uri": "pvc://models/m"},
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

#: What each kind of address becomes: vLLM's arguments, the claim that is mounted, and whether HTTPS may leave.
_ADDRESSES = {
    "hf://Qwen/Qwen3-8B": (["Qwen/Qwen3-8B"], None, True),
    "hf://Qwen/Qwen3-8B@refs/pr/1": (["Qwen/Qwen3-8B", "--revision=refs/pr/1"], None, True),
    "hf://gpt2": (["gpt2"], None, True),
    "pvc://weights/reasoner/32b/": (["/models/reasoner/32b"], "weights", False),
    "s3://bucket/reasoner": (["s3://bucket/reasoner"], None, True),
    "gs://bucket/reasoner": (["gs://bucket/reasoner"], None, True),
    "az://bucket/reasoner": (["az://bucket/reasoner"], None, True),
    "file:///weights/reasoner": (["/weights/reasoner"], None, False),
}
_REFUSED_ADDRESSES = [
    "Qwen/Qwen3-8B",
    "oci://registry.example/reasoner:1",
    "https://example.com/reasoner",
    "pvc://weights",
    "pvc://weights/",
    "file://weights",
    "hf://Qwen/Qwen3-8B/more",
    "s3://",
]
_TWO = {
    "router": {"enabled": True},
    "monitoring": {"scrape": "service"},
    "drain": {"seconds": 40},
    "models": [
        {"name": "small", "replicas": 0, "drain": {"seconds": 60}, "autoscaling": {"kind": "keda"}},
        {
            "name": "small-x",
            "model": {"uri": "pvc://models/x"},
            "router": {"enabled": False},
            "dialect": {"name": "none"},
            "tolerations": [],
        },
    ],
    "replicas": 3,
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "server": {"config": {"max-model-len": 4096}},
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
CASES |= {uri: {"model": {"uri": uri}} for uri in _ADDRESSES} | {"two models": _TWO}
CASES["long name"] = {"fullnameOverride": "n" * 60, "autoscaling": {"kind": "keda"}}
CASES["long names"] = CASES["long name"] | {"models": [{"name": "small"}, {"name": "m" * 20}]}


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


def test_no_rollout_on_gpus_needs_a_spare_one(rendered):
    for name, manifests in rendered.items():
        for server in of_kind(manifests, "Deployment"):
            limits = pods([server])[0].spec["containers"][0]["resources"]["limits"]
            if "nvidia.com/gpu" in limits:
                assert server["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0, name


def _pod_names(deployment: str, longest_hash: str = "7" * 10) -> str:
    """The name of a Deployment's pod, as the API server makes it: what does not fit is cut, also a dash."""
    return f"{deployment}-{longest_hash}-"[:58] + "x7k2p"


@pytest.mark.parametrize("name", ["long name", "long names"])
def test_an_autoscalers_query_finds_the_pods_of_a_long_name(made, name):
    scalers = of_kind(made[name], "ScaledObject")
    assert scalers
    for scaler in scalers:
        pod = _pod_names(scaler["spec"]["scaleTargetRef"]["name"])
        for trigger in scaler["spec"]["triggers"]:
            pattern = re.search(r'pod=~"([^"]+)"', trigger["metadata"]["query"])[1]
            assert re.fullmatch(pattern, pod), (pattern, pod)


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


@pytest.mark.parametrize("uri", _ADDRESSES)
def test_an_address_of_a_model_becomes_what_vllm_takes(made, uri):
    arguments, claim, leaves = _ADDRESSES[uri]
    (pod,) = pods(made[uri])
    (container,) = pod.spec["containers"]
    given = container["args"]
    assert given[: given.index("--config")] == arguments
    offline = next(e["value"] for e in container["env"] if e["name"] == "HF_HUB_OFFLINE")
    assert offline == ("0" if uri.startswith("hf://") else "1")
    claims = [
        v["persistentVolumeClaim"]["claimName"] for v in pod.spec["volumes"] if "persistentVolumeClaim" in v
    ]
    assert claims == ([claim] if claim else [])
    (policy,) = of_kind(made[uri], "NetworkPolicy")
    ports = [p["port"] for rule in policy["spec"]["egress"] for p in rule["ports"]]
    assert (443 in ports) == leaves


def test_each_model_of_a_release_has_what_is_its_own(made):
    manifests = made["two models"]
    names = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    assert len(names) == len(manifests)
    base = "forkjoin-vllm-forkjoin"
    for kind in (
        "Deployment",
        "ConfigMap",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceMonitor",
    ):
        assert {(kind, f"{base}-small"), (kind, f"{base}-small-x")} <= names
    assert ("ScaledObject", f"{base}-small") in names
    assert {name for kind, name in names if kind == "ServiceAccount"} == {base, f"{base}-small-router"}


def test_a_model_takes_from_its_release_what_it_does_not_say_itself(made):
    small, large = (
        next(
            d for d in of_kind(made["two models"], "Deployment") if d["metadata"]["name"].endswith(f"-{name}")
        )
        for name in ("small", "small-x")
    )
    of_small, of_large = (d["spec"]["template"]["spec"] for d in (small, large))
    assert "replicas" not in small["spec"]
    assert large["spec"]["replicas"] == 3
    assert "tolerations" in of_small
    assert "tolerations" not in of_large
    assert "--shutdown-timeout=60" in of_small["containers"][0]["args"]
    assert {"/models/x", "--dialect=none", "--shutdown-timeout=40"} <= set(of_large["containers"][0]["args"])
    routers = [d for d in of_kind(made["two models"], "Deployment") if "-router" in d["metadata"]["name"]]
    assert [d["metadata"]["name"] for d in routers] == ["forkjoin-vllm-forkjoin-small-router"]


def test_no_selector_of_a_model_takes_pods_of_another(made):
    manifests = made["two models"]
    for manifest in of_kind(manifests, "Deployment", "PodDisruptionBudget"):
        found = [p for p in pods(manifests) if selects(manifest["spec"]["selector"], p.labels)]
        assert len(found) == 1, manifest["metadata"]["name"]
    for policy in of_kind(manifests, "NetworkPolicy"):
        assert len([p for p in pods(manifests) if selects(policy["spec"]["podSelector"], p.labels)]) == 1
    router = next(p for p in pods(manifests) if p.spec["containers"][0]["name"] == "router")
    wanted = dict(
        a.split("=") for a in router.spec["containers"][0]["args"] if a.startswith(("app.", "vllm-"))
    )
    assert [p.name.split("/")[0] for p in pods(manifests) if wanted.items() <= p.labels.items()] == [
        "Deployment forkjoin-vllm-forkjoin-small"
    ]


def test_a_model_is_scaled_by_its_own_pods_only(made):
    (scaler,) = of_kind(made["two models"], "ScaledObject")
    base = "forkjoin-vllm-forkjoin-small"
    for trigger in scaler["spec"]["triggers"]:
        pattern = re.search('pod=~"([^"]+)"', trigger["metadata"]["query"])[1]
        assert re.fullmatch(pattern, f"{base}-5d4f8c7b9d-x2v4q")
        assert not re.fullmatch(pattern, f"{base}-x-5d4f8c7b9d-x2v4q")
        assert not re.fullmatch(pattern, f"{base}-router-5d4f8c7b9d-x2v4q")


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
        ({"models": [{"name": "a"}, {"name": "a"}]}, "expected a name of its own for each, got a twice"),
        ({"models": [{"name": "a-router"}]}, "models"),
        ({"models": [{"replicas": 1}]}, "name"),
        ({"models": [{"name": "a", "auth": {}}]}, "auth"),
        (_DOORS | {"models": [{"name": "a"}, {"name": "b"}]}, "llm.example.com of an Ingress twice"),
        (
            {"httpRoute": _DOORS["httpRoute"] | {"hostnames": []}, "models": [{"name": "a"}, {"name": "b"}]},
            "any host of an HTTPRoute twice",
        ),
    ],
)
def test_what_can_not_be_made_is_refused_by_its_name(ask, values, said):
    assert said in ask("render", chart=str(CHART), values=values)["refused"]


@pytest.mark.parametrize("uri", _REFUSED_ADDRESSES)
def test_an_address_that_nothing_reads_is_refused(ask, uri):
    assert "uri" in ask("render", chart=str(CHART), values={"model": {"uri": uri}})["refused"]
