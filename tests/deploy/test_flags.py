"""What the manifests tell the programs in the containers, these programs take."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from tests.deploy.manifests import SETS, of_kind, pods

SERVERS = [n for n in SETS if n.startswith(("helm", "kustomize"))]


def _argv(pod, container, manifests, tmp_path):
    """The arguments of a server as its pod would see them: with its files, and LeaderWorkerSet's variables."""
    mounted = [v["configMap"]["name"] for v in pod.spec["volumes"] if "configMap" in v]
    (config,) = (m["data"] for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"] in mounted)
    for name, text in config.items():
        path = tmp_path / (name if name == "server.yaml" else f"dialects/{name}")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    variables = {
        "$(LWS_LEADER_ADDRESS)": "leader.example",
        "$(LWS_WORKER_INDEX)": "1",
        "/etc/forkjoin": str(tmp_path),
    }
    argv = container["args"]
    for variable, value in variables.items():
        argv = [a.replace(variable, value) for a in argv]
    return argv


@pytest.mark.engine  # imports vLLM's parser
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_takes_its_flags_and_its_config(rendered, tmp_path, name):
    from forkjoin_server.cli import serve_args

    found = [
        (p, c)
        for p in pods(rendered[name])
        for c in p.spec["containers"]
        if c["name"] in ("server", "worker")
    ]
    for pod, container in found:
        args = serve_args(_argv(pod, container, rendered[name], tmp_path))
        assert (args.host, args.port) == ("0.0.0.0", 8000)
        pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        if container["name"] == "server":
            assert pod.spec["terminationGracePeriodSeconds"] > pre_stop + args.shutdown_timeout > pre_stop
        assert args.headless == (container["name"] == "worker")
        if name == "helm multi-node":
            assert (args.nnodes, args.tensor_parallel_size, args.pipeline_parallel_size) == (2, 16, 1)
            assert args.node_rank == (container["name"] == "worker")


@pytest.mark.engine
def test_ray_serves_starts_it_with_flags_that_it_takes(rendered):
    from forkjoin_server.cli import serve_args

    spec = rendered["kuberay"][0]["spec"]
    application = yaml.safe_load(spec["serveConfigV2"])["applications"][0]
    args = serve_args(application["args"]["argv"])
    deployment = application["deployments"][0]
    assert application["import_path"] == "forkjoin_app:app"
    assert deployment["graceful_shutdown_timeout_s"] >= args.shutdown_timeout
    worker = spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["terminationGracePeriodSeconds"] > deployment["graceful_shutdown_timeout_s"]


@pytest.mark.engine
def test_a_flag_that_is_none_is_refused(rendered, tmp_path):
    from forkjoin_server.cli import serve_args

    pod = pods(rendered["helm defaults"])[0]
    argv = _argv(pod, pod.spec["containers"][0], rendered["helm defaults"], tmp_path)
    with pytest.raises(SystemExit):
        serve_args([*argv, "--shutdown-timeouts=3"])


def test_a_dialect_file_of_the_values_is_a_dialect(rendered, tmp_path):
    from forkjoin_scheduler.dialects.files import load

    config = next(
        m["data"] for m in of_kind(rendered["helm gpu-scaled"], "ConfigMap") if "reasoner.yaml" in m["data"]
    )
    file = tmp_path / "reasoner.yaml"
    file.write_text(config["reasoner.yaml"])
    assert load(str(file)).name == "reasoner"


@pytest.mark.parametrize("name", ["helm gpu-scaled", "helm models"])
def test_the_router_takes_its_flags(tools, rendered, name):
    args = next(
        c["args"] for p in pods(rendered[name]) for c in p.spec["containers"] if c["name"] == "router"
    )

    def parse(*argv):
        code = (
            "import sys; from vllm_router.launch_router import parse_router_args as parse;"
            "args = parse(sys.argv[1:]); print(args.policy, args.selector, args.health_check_endpoint)"
        )
        return subprocess.run([tools / "python", "-c", code, *argv], capture_output=True, text=True)

    done = parse(*args)
    assert done.returncode == 0, done.stderr
    assert "consistent_hash" in done.stdout
    assert "'app.kubernetes.io/component': 'server'" in done.stdout
    assert ("'vllm-forkjoin/model': 'large'" in done.stdout) == (name == "helm models")
    assert done.stdout.endswith("/ready\n")
    assert parse(*args, "--no-such-flag").returncode
