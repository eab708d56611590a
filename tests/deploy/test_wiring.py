"""What manifests say of each other is so: selectors find, names are there, ports are open."""

from __future__ import annotations

import pytest
import yaml

from tests.deploy.manifests import SETS, VALUES, of_kind, pods, selects

#: What a user makes before, or another project brings, by kind.
BROUGHT = {
    "Secret": {"vllm-forkjoin"},
    "PersistentVolumeClaim": {"models"},
    "Service": {"vllm-forkjoin-epp"},
    "ServiceAccount": set(),
    "ConfigMap": set(),
}


def _names(manifests, kind):
    return {m["metadata"]["name"] for m in of_kind(manifests, kind)} | BROUGHT.get(kind, set())


def _ports(pod):
    return {p["name"]: p["containerPort"] for c in pod.spec["containers"] for p in c.get("ports", [])}


@pytest.mark.parametrize("name", SETS)
def test_a_pod_names_only_what_is_there(rendered, name):
    manifests = rendered[name]
    for pod in pods(manifests):
        for volume in pod.spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in _names(manifests, "PersistentVolumeClaim")
            if config := volume.get("configMap"):
                data = {m["metadata"]["name"]: m["data"] for m in of_kind(manifests, "ConfigMap")}[
                    config["name"]
                ]
                assert {i["key"] for i in config.get("items", [])} <= data.keys()
        volumes = {v["name"] for v in pod.spec["volumes"]}
        for container in pod.spec["containers"]:
            assert {m["name"] for m in container["volumeMounts"]} == volumes
            for env in container.get("env", []):
                if ref := env.get("valueFrom", {}).get("secretKeyRef"):
                    made = {m["metadata"]["name"]: m["stringData"] for m in of_kind(manifests, "Secret")}
                    assert ref["name"] in BROUGHT["Secret"] or ref["key"] in made[ref["name"]]
        if account := pod.spec.get("serviceAccountName"):
            assert account in _names(manifests, "ServiceAccount")


@pytest.mark.parametrize("name", SETS)
def test_a_service_finds_pods_with_its_ports(rendered, name):
    for service in of_kind(rendered[name], "Service"):
        found = [p for p in pods(rendered[name]) if service["spec"]["selector"].items() <= p.labels.items()]
        assert len(found) == 1, service["metadata"]["name"]
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= _ports(found[0]).keys()


@pytest.mark.parametrize("name", SETS)
def test_an_owner_selects_its_own_pods(rendered, name):
    for owner in of_kind(rendered[name], "Deployment"):
        assert [selects(owner["spec"]["selector"], p.labels) for p in pods([owner])] == [True]
        others = [p for p in pods(rendered[name]) if p.owner is not owner]
        assert not any(selects(owner["spec"]["selector"], p.labels) for p in others)


@pytest.mark.parametrize("name", SETS)
def test_budgets_and_policies_find_pods_and_their_ports(rendered, name):
    for manifest in of_kind(rendered[name], "PodDisruptionBudget"):
        assert [p for p in pods(rendered[name]) if selects(manifest["spec"]["selector"], p.labels)]
    for manifest in of_kind(rendered[name], "NetworkPolicy"):
        found = [p for p in pods(rendered[name]) if selects(manifest["spec"]["podSelector"], p.labels)]
        named = {
            port["port"]
            for rule in manifest["spec"]["ingress"]
            for port in rule.get("ports", [])
            if isinstance(port["port"], str)
        }
        assert found
        assert all(named <= _ports(p).keys() for p in found if p.spec["containers"][0]["name"] != "worker")


@pytest.mark.parametrize("name", SETS)
def test_monitors_find_what_they_scrape(rendered, name):
    manifests = rendered[name]
    for monitor in of_kind(manifests, "PodMonitor"):
        found = [p for p in pods(manifests) if selects(monitor["spec"]["selector"], p.labels)]
        assert len(found) == 1
        assert {e["port"] for e in monitor["spec"]["podMetricsEndpoints"]} <= _ports(found[0]).keys()
    for monitor in of_kind(manifests, "ServiceMonitor"):
        services = of_kind(manifests, "Service")
        found = [s for s in services if selects(monitor["spec"]["selector"], s["metadata"]["labels"])]
        assert len(found) == 1
        assert {e["port"] for e in monitor["spec"]["endpoints"]} <= {
            p["name"] for p in found[0]["spec"]["ports"]
        }


@pytest.mark.parametrize("name", SETS)
def test_an_autoscaler_scales_what_is_there_and_nothing_else_does(rendered, name):
    for scaler in of_kind(rendered[name], "HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]
        owners = [
            m for m in of_kind(rendered[name], target["kind"]) if m["metadata"]["name"] == target["name"]
        ]
        assert len(owners) == 1
        assert "replicas" not in owners[0]["spec"]


def test_the_router_asks_for_the_servers_of_its_own_release(rendered):
    manifests = rendered["helm gpu-scaled"]
    router, server = (
        next(p for p in pods(manifests) if p.spec["containers"][0]["name"] == n) for n in ("router", "server")
    )
    args = router.spec["containers"][0]["args"]
    selector = dict(a.split("=") for a in args if a.startswith("app.kubernetes.io/"))
    assert selector.items() <= server.labels.items()
    assert not selector.items() <= router.labels.items()
    assert f"--service-discovery-port={_ports(server)['http']}" in args
    role, binding = of_kind(manifests, "Role")[0], of_kind(manifests, "RoleBinding")[0]
    assert [(r["resources"], r["verbs"]) for r in role["rules"]] == [(["pods"], ["get", "list", "watch"])]
    assert binding["subjects"][0]["name"] == router.spec["serviceAccountName"]


def test_what_stands_before_the_servers_waits_as_long_for_an_answer_as_the_router(rendered):
    manifests = rendered["helm gpu-scaled"]
    (ingress,) = of_kind(manifests, "Ingress")
    router = next(p for p in pods(manifests) if p.spec["containers"][0]["name"] == "router")
    flag = "--request-timeout-secs="
    (asked,) = (a.removeprefix(flag) for a in router.spec["containers"][0]["args"] if a.startswith(flag))
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == asked


def test_a_change_of_the_config_starts_pods_anew(ask):
    from tests.deploy.manifests import CHART, parse

    def checksum(**values):
        template = ask("render", chart=str(CHART), values=values)["vllm-forkjoin/templates/deployment.yaml"]
        return pods(parse(template))[0].owner["spec"]["template"]["metadata"]["annotations"][
            "checksum/config"
        ]

    assert checksum() == checksum()
    assert checksum() != checksum(server={"config": {"max-model-len": 1}})


@pytest.mark.parametrize("servers", ["helm defaults", "kustomize/base"])
def test_the_gateway_leads_to_the_servers(rendered, servers):
    gateway, route, pool = (
        of_kind(rendered["gateway"], k)[0] for k in ("Gateway", "HTTPRoute", "InferencePool")
    )
    assert route["spec"]["parentRefs"][0]["name"] == gateway["metadata"]["name"]
    backend = route["spec"]["rules"][0]["backendRefs"][0]
    assert (backend["kind"], backend["name"]) == (pool["kind"], pool["metadata"]["name"])
    assert pool["apiVersion"].startswith(backend["group"])
    server = pods(rendered[servers])[0]
    assert selects(pool["spec"]["selector"], server.labels)
    assert pool["spec"]["targetPorts"] == [{"number": _ports(server)["http"]}]


@pytest.mark.parametrize(
    "name", [n for n in VALUES if n != "helm multi-node"] + ["kustomize/base", "kustomize/gpu"]
)
def test_the_server_listens_where_its_probes_look(rendered, name):
    config = next(
        m["data"]["server.yaml"] for m in of_kind(rendered[name], "ConfigMap") if "server.yaml" in m["data"]
    )
    server = next(p for p in pods(rendered[name]) if p.spec["containers"][0]["name"] == "server")
    assert yaml.safe_load(config)["port"] == _ports(server)["http"]
    assert yaml.safe_load(config)["host"] == "0.0.0.0"
