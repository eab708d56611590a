"""Every pod that we ship passes the hardening gate, ours and checkov's, and each rule of ours can refuse."""

from __future__ import annotations

import copy
import json
import subprocess

import pytest
import yaml

from tests.deploy.hardening import faults
from tests.deploy.manifests import SETS, pods

#: checkov's rules that do not hold here, with the reason.
NOT_HERE = {
    "CKV_K8S_15": "an image is pinned by tag or digest: pulling it at each start makes the registry a dependency",
    "CKV_K8S_21": "manifests name no namespace: who applies them does",
    "CKV_K8S_35": "vLLM and the hub's client read their keys from the environment only",
    "CKV_K8S_43": "digests exist once images are pushed: image.digest takes them",
}
#: And for one pod only.
NOT_FOR = {
    "CKV_K8S_38": {"router", "ray-head"},  # they ask the cluster's API: see hardening.MAY_HAVE_TOKEN
}


@pytest.mark.parametrize("name", SETS)
def test_the_gate_finds_nothing(rendered, name):
    assert faults(rendered[name]) == []


def _pod(m):
    return m["spec"]["template"]["spec"]


def _server(m):
    return _pod(m)["containers"][0]


WORSE = {
    "root": lambda m: _pod(m)["securityContext"].update(runAsUser=0),
    "maybe root": lambda m: _pod(m)["securityContext"].pop("runAsNonRoot"),
    "seccomp": lambda m: _pod(m)["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    "host network": lambda m: _pod(m).update(hostNetwork=True),
    "token": lambda m: _pod(m).pop("automountServiceAccountToken"),
    "host path": lambda m: _pod(m)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "endless volume": lambda m: _pod(m)["volumes"].append({"name": "x", "emptyDir": {}}),
    "escalation": lambda m: _server(m)["securityContext"].pop("allowPrivilegeEscalation"),
    "writable root": lambda m: _server(m)["securityContext"].update(readOnlyRootFilesystem=False),
    "capability": lambda m: _server(m)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    "latest": lambda m: _server(m).update(image="registry.example/vllm-forkjoin:latest"),
    "no tag": lambda m: _server(m).update(image="registry.example:5000/vllm-forkjoin"),
    "no limit": lambda m: _server(m)["resources"]["limits"].pop("memory"),
    "overcommitted": lambda m: _server(m)["resources"]["requests"].update(memory="1Gi"),
    "secret": lambda m: _server(m)["env"].append({"name": "VLLM_API_KEY", "value": "x"}),
    "no startup probe": lambda m: _server(m).pop("startupProbe"),
    "ready is health": lambda m: _server(m)["readinessProbe"]["httpGet"].update(path="/health"),
    "no preStop": lambda m: _server(m).pop("lifecycle"),
    "short grace": lambda m: _pod(m).update(terminationGracePeriodSeconds=40),
    "no policy": lambda m: m["spec"]["template"]["metadata"]["labels"].update(
        {"app.kubernetes.io/name": "x"}
    ),
}


@pytest.mark.parametrize("what", WORSE)
def test_the_gate_refuses(rendered, what):
    manifests = copy.deepcopy(rendered["helm defaults"])
    WORSE[what](next(m for m in manifests if m["kind"] == "Deployment"))
    assert faults(manifests)


@pytest.mark.parametrize("kind", ["NetworkPolicy", "PodDisruptionBudget"])
def test_the_gate_refuses_a_server_without(rendered, kind):
    assert faults([m for m in rendered["helm defaults"] if m["kind"] != kind])


def test_the_gate_refuses_a_policy_that_is_open(rendered):
    manifests = copy.deepcopy(rendered["helm defaults"])
    policy = next(m for m in manifests if m["kind"] == "NetworkPolicy")
    policy["spec"]["ingress"].append({"ports": [{"port": "http"}]})
    assert faults(manifests)


def test_the_gate_looks_at_every_pod(rendered):
    names = {name: len(pods(manifests)) for name, manifests in rendered.items()}
    assert names == dict.fromkeys(names, 1) | {
        "helm gpu-scaled": 2,
        "helm models": 3,
        "helm multi-node": 2,
        "kuberay": 2,
        "gateway": 0,
    }


def _checkov(tools, folder, *, framework):
    command = [tools / "python", tools / "checkov", "--directory", folder, "--framework", framework]
    command += ["--output", "json", "--quiet", "--compact", "--skip-download"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith(("{", "[")), done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 0
    assert report["summary"]["parsing_errors"] == 0
    return [(c["check_id"], c["resource"], c["file_path"]) for c in report["results"]["failed_checks"]]


def _as_kubernetes(manifests):
    """With the pods of custom resources as Deployments, which checkov knows."""
    for manifest in manifests:
        if manifest["kind"] in ("LeaderWorkerSet", "RayService"):
            for i, pod in enumerate(pods([manifest])):
                name = f"{manifest['metadata']['name']}-{pod.spec['containers'][0]['name']}"
                template = {"metadata": {"labels": pod.labels}, "spec": pod.spec}
                spec = {"replicas": i, "selector": {"matchLabels": pod.labels}, "template": template}
                yield {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "metadata": {"name": name},
                    "spec": spec,
                }
        else:
            yield manifest


#: What a pod has that serves no requests itself: a worker of a group, and Ray's pods, whose probes are KubeRay's.
_NO_PROBES = ("worker", "ray-head", "ray-worker")


def test_checkov_finds_nothing(tools, rendered, tmp_path):
    for name, manifests in rendered.items():
        file = tmp_path / f"{name.replace('/', '-').replace(' ', '-')}.yaml"
        file.write_text(yaml.safe_dump_all(_as_kubernetes(manifests)))
    found = _checkov(tools, tmp_path, framework="kubernetes")
    unexplained = [
        (check, resource, file)
        for check, resource, file in found
        if check not in NOT_HERE
        and not any(resource.split("(")[0].endswith(pod) for pod in NOT_FOR.get(check, ()))
        and not (check in ("CKV_K8S_8", "CKV_K8S_9") and resource.endswith(_NO_PROBES))
        and not (check == "CKV2_K8S_6" and "kuberay" in file)  # its policy is the operator's to make
    ]
    assert unexplained == []
    assert NOT_HERE.keys() <= {check for check, _, _ in found}, (
        "one of NOT_HERE finds nothing any more: drop it"
    )


def test_checkov_refuses_a_bare_pod(tools, tmp_path):
    pod = {"containers": [{"name": "x", "image": "x:latest", "securityContext": {"privileged": True}}]}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(manifest))
    found = {check for check, _, _ in _checkov(tools, tmp_path, framework="kubernetes")}
    assert {"CKV_K8S_16", "CKV_K8S_22", "CKV_K8S_37"} <= found
