"""What is said where vLLM can't be imported, and of versions that no test has run whole."""

from __future__ import annotations

import builtins

import pytest

from forkjoin_scheduler.errors import UnsupportedEngine
from forkjoin_server.vllm_seam.start.versions import check_version


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("No module named 'vllm'"), "install vllm-forkjoin[cuda] for GPUs"),
        (RuntimeError("operator torchvision::nms does not exist"), "pip uninstall torchvision torchaudio"),
        (OSError("Could not load this library: _torchaudio.so"), "pip uninstall torchvision torchaudio"),
    ],
    ids=["no_vllm", "torchvision_of_another_torch", "torchaudio_of_another_torch"],
)
def test_a_vllm_that_can_not_be_imported_is_told_with_its_cure(monkeypatch, error, said):
    real = builtins.__import__

    def broken(name, *args):
        if len(args) > 2 and "compat" in (args[2] or ()):
            raise error
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(UnsupportedEngine) as refused:
        check_version()
    assert said in str(refused.value)
    assert str(error) in str(refused.value)


def test_what_no_test_has_run_of_a_version_is_said_with_it(monkeypatch):
    from forkjoin_scheduler.vllm_seam import compat

    for version, is_tested in [("0.32.0", True), ("0.33.0", False)]:
        monkeypatch.setattr(compat.vllm, "__version__", version)
        said, untested = check_version()
        assert said == version
        assert untested is None if is_tested else "vLLM 0.33.0: only some tests have run" in untested
