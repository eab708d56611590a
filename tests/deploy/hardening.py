"""The hardening gate: what each pod that we ship must have, beyond what is valid. Plain data in, faults out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.deploy.manifests import Manifest, Pod, of_kind, pods, selects

#: Pods that ask the cluster's API, and why: nothing else gets a token.
MAY_HAVE_TOKEN = {
    "router": "lists the servers' pods",
    "ray-head": "the operator's autoscaler changes the RayCluster",
}
#: Containers that serve requests: they need probes and a drain.
SERVES = {"server", "router"}
#: What a budget without a selector selects.
_NOTHING = {"matchExpressions": [{"key": "", "values": []}]}
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")


def faults(manifests: list[Manifest]) -> list[str]:
    """What is wrong with the pods of ``manifests`` and with what must stand around them."""
    return [f"{pod.name}: {fault}" for pod in pods(manifests) for fault in _of_pod(pod, manifests)]


def _of_pod(pod: Pod, manifests: list[Manifest]) -> Iterator[str]:
    spec, security = pod.spec, pod.spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) < 10000:
        yield "expected runAsNonRoot and a user id of its own"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "expected seccomp RuntimeDefault"
    if named := [k for k in ("hostNetwork", "hostPID", "hostIPC") if spec.get(k)]:
        yield f"shares the node's {named}"
    if (
        spec.get("automountServiceAccountToken") is not False
        and spec["containers"][0]["name"] not in MAY_HAVE_TOKEN
    ):
        yield "gets a token of the cluster's API"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is the node's"
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"volume {volume['name']} can fill the node"
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        yield from (f"{container['name']}: {fault}" for fault in _of_container(container))
        if container["name"] in SERVES:
            yield from _of_lifecycle(container, spec, manifests)
    if pod.owner["kind"] != "RayService":
        yield from _around(pod, manifests)


def _of_container(container: dict[str, Any]) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain privileges"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "can write its root file system"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "expected all capabilities dropped and none added"
    name, _, tag = container["image"].rpartition("/")[2].partition(":")
    if "@sha256:" not in container["image"] and tag in ("", "latest"):
        yield f"image {name} is not pinned"
    resources = container.get("resources", {})
    for of in ("requests", "limits"):
        if not {"cpu", "memory"} <= resources.get(of, {}).keys():
            yield f"has no {of} of cpu and memory"
    if resources.get("requests", {}).get("memory") != resources.get("limits", {}).get("memory") and (
        container["name"] != "router"
    ):
        yield "may be promised memory that is not there"
    for env in container.get("env", []):
        if _SECRET.search(env["name"]) and "value" in env:
            yield f"{env['name']} stands in the manifest"
    for arg in container.get("args", []):
        if re.match(r"--(api-key|hf-token)", arg):
            yield f"{arg} stands in the manifest"


def _of_lifecycle(
    container: dict[str, Any], spec: dict[str, Any], manifests: list[Manifest]
) -> Iterator[str]:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if probe not in container:
            yield f"no {probe}"
    if container["name"] == "server":
        paths = [
            container.get(f"{p}Probe", {}).get("httpGet", {}).get("path")
            for p in ("startup", "readiness", "liveness")
        ]
        if paths != ["/health", "/ready", "/health"]:
            yield f"expected probes on /health, /ready and /health, got {paths}"
    pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed = pre_stop + (drain_s(container, manifests) if container["name"] == "server" else 0)
    if pre_stop < 5:
        yield "takes requests off before routers know (no preStop)"
    if spec.get("terminationGracePeriodSeconds", 30) <= needed:
        yield f"is killed in its drain: expected a grace of more than {needed} s"


def drain_s(container: dict[str, Any], manifests: list[Manifest]) -> int:
    """--shutdown-timeout of a server, from its arguments or its config file."""
    for arg in container["args"]:
        if arg.startswith("--shutdown-timeout="):
            return int(arg.partition("=")[2])
    import yaml

    configs = [
        m["data"]["server.yaml"] for m in of_kind(manifests, "ConfigMap") if "server.yaml" in m["data"]
    ]
    return int(yaml.safe_load(configs[0])["shutdown-timeout"])


def _around(pod: Pod, manifests: list[Manifest]) -> Iterator[str]:
    policies = of_kind(manifests, "NetworkPolicy")
    covering = [p for p in policies if selects(p["spec"]["podSelector"], pod.labels)]
    if {t for p in covering for t in p["spec"]["policyTypes"]} != {"Ingress", "Egress"}:
        yield "no NetworkPolicy closes it both ways"
    for policy in covering:
        if any(not rule.get("from") for rule in policy["spec"].get("ingress") or []):
            yield f"NetworkPolicy {policy['metadata']['name']} lets everybody in"
        if not policy["spec"]["podSelector"]:
            yield f"NetworkPolicy {policy['metadata']['name']} is for every pod of its namespace"
    budgets = of_kind(manifests, "PodDisruptionBudget")
    if pod.spec["containers"][0]["name"] in SERVES and not any(
        selects(b["spec"].get("selector", _NOTHING), pod.labels) for b in budgets
    ):
        yield "no PodDisruptionBudget keeps it"
