"""A whole server with vLLM's ``OffloadingConnector``, and one that starts on the folder of another.

The copies are those of ``host_offloading.py``, for vLLM's own refuse a CPU; all else is vLLM's.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forkjoin_bench.vllm_seam import host_offloading
from tests.importing import ROOT, importable
from tests.server.asking import LIMIT_S, ask, ask_together, worksheet
from tests.server.conftest import END_S, start_server
from tests.server.reading import metrics

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

NUM_THREADS = 3
SHEETS = [worksheet(NUM_THREADS, seed) for seed in range(6)]
#: No answer is so long, and the model's context is little longer.
SHORT = {"max_tokens": 900}
#: Blocks for the longest context, and for no two answers; greedy admission starts all the same.
FLAGS = ("--max-model-len", "1024", "--num-gpu-blocks-override", "34", "--admission", "greedy")
#: A drain waits so long for what is in flight.
FLAGS += ("--shutdown-timeout", f"{LIMIT_S}")
FORKS = "forkjoin:forks_total"


def _flags(folder: Path) -> tuple[str, ...]:
    """Those of a server that keeps what it offloads in ``folder``, too."""
    extra = host_offloading.EXTRA_CONFIG | {
        "spec_name": host_offloading.HostTieringSpec.__name__,
        "cpu_bytes_to_use": 1 << 26,
        "transfer_steps": 2,
        "secondary_tiers": [{"type": "fs", "root_dir": str(folder)}],
    }
    connects = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }
    # in fp32 greedy choices do not depend on what else is in the batch
    return "--dtype", "float32", *FLAGS, "--kv-transfer-config", json.dumps(connects)


def _moved(address: str) -> tuple[float, float]:
    """Bytes that the server has loaded and stored so far; vLLM counts them once there are some."""
    counted = metrics(address)
    loaded, stored = (counted.get(f"vllm:kv_offload_{name}_bytes_total", 0) for name in ("load", "store"))
    return loaded, stored


def _ends_well(process: subprocess.Popen[bytes], log: Path) -> None:
    """The server has ended as it should, and has left no memory that its processes shared."""
    assert process.wait(timeout=END_S) == 0
    said = log.read_text()
    assert "drained: all requests in flight were answered" in said
    assert not re.search("Traceback|ERROR|CRITICAL", said)
    shared = re.findall(r"/dev/shm/vllm_offload_\S+", said)
    assert shared
    assert not [path for path in shared if Path(path).exists()]


def test_families_that_lose_their_kv_load_it_and_so_does_a_server_that_starts_later(tmp_path):
    folder, log = tmp_path / "kv", tmp_path / "log"
    folder.mkdir()
    with start_server(log, *_flags(folder), env=importable(ROOT)) as (address, process):
        alone = [ask(address, sheet, **SHORT) for sheet in SHEETS]
        assert all(len(told.threads) == NUM_THREADS for told in alone)
        loaded, stored = _moved(address)
        assert not loaded
        assert stored
        num_forks = metrics(address)[FORKS] + len(SHEETS)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask_together, address, SHEETS, **SHORT)
            while metrics(address)[FORKS] < num_forks:
                assert not asked.done()
            assert _moved(address)[0]
            process.send_signal(signal.SIGTERM)
            assert asked.result() == alone
        _ends_well(process, log)
    with start_server(log, *_flags(folder), env=importable(ROOT)) as (address, process):
        no_files = {"kv_transfer_params": {"kv_load_tiers": []}}
        assert ask(address, SHEETS[0], **SHORT, **no_files) == alone[0]
        assert not _moved(address)[0]
        assert ask(address, SHEETS[1], **SHORT) == alone[1]
        assert _moved(address)[0]
        process.send_signal(signal.SIGTERM)
        _ends_well(process, log)
