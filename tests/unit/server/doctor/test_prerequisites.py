"""What the operating system must bring, and the sentence that says so."""

from __future__ import annotations

import ctypes
import sysconfig

import pytest

from forkjoin_scheduler.vllm_seam.cache.machine import Machine
from forkjoin_server.doctor import environment, prerequisites
from forkjoin_server.doctor.check import Status
from forkjoin_server.doctor.prerequisites import COMPILER, HEADERS, NUMA, VENV


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine that has none of it."""

    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(prerequisites, "find_spec", lambda name: None)
    monkeypatch.setattr(prerequisites.shutil, "which", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(ctypes, "CDLL", no_library)


def test_a_bare_machine_lacks_all_of_it(bare):
    assert prerequisites.to_install() == [VENV, HEADERS, COMPILER, NUMA]


def test_this_machine_lacks_nothing():
    assert prerequisites.to_install() == []


def test_the_sentence_says_what_is_missing_why_and_the_command_for_both_families(bare):
    said = prerequisites.sentence([HEADERS, COMPILER, NUMA])
    assert said == (
        "missing: Python's headers (Python.h) and a C++ compiler (PyTorch and Triton compile kernels for this "
        f"machine); the library libnuma (vLLM on a CPU loads it). Install with: apt-get install {HEADERS.debian} "
        "g++ libnuma1 (Debian, Ubuntu) or dnf install python3-devel gcc-c++ numactl-libs (Fedora)"
    )


@pytest.mark.parametrize(("tool", "begins"), [("apt-get", "apt-get install"), ("dnf", "dnf install")])
def test_the_command_is_that_of_the_distribution(monkeypatch, tool, begins):
    monkeypatch.setattr(
        prerequisites.shutil, "which", lambda name: f"/usr/bin/{name}" if name == tool else None
    )
    assert prerequisites.command([COMPILER]).startswith(begins)
    assert " or " not in prerequisites.command([COMPILER])


@pytest.mark.parametrize(("kind", "names_numa"), [("cpu", True), ("cuda", False)])
def test_the_doctor_fails_where_a_server_could_not_compile(bare, kind, names_numa):
    check = environment.system(Machine(kind, "x", 1, 1, 1, 2))
    assert check.status is Status.FAIL
    assert "a C++ compiler" in check.seen
    assert ("libnuma" in check.seen) is names_numa


def test_another_compiler_is_taken_from_the_variable(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert prerequisites.to_compile() == [COMPILER]
    monkeypatch.setenv("CXX", "sh")
    assert prerequisites.to_compile() == []
