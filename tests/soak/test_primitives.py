"""Why the soaked server keeps few of oneDNN's compiled products: with as many as it keeps by default, memory grows."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import psutil
import pytest

from tests.soak.memory import MIB, environment, in_use
from tests.soak.server import ENV

pytestmark = pytest.mark.engine

#: A layer of the embedded model multiplies as many rows as each line says.
LAYER = """
import sys, torch
from vllm.platforms import current_platform
current_platform.import_kernels()
from vllm import _custom_ops as ops
layer = ops.create_onednn_mm(torch.randn(1152, 192).t(), 32)
for line in sys.stdin:
    ops.onednn_mm(layer, torch.zeros(int(line), 192), None)
    print("done", flush=True)
"""
NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def mib_for_each_of_hundred_more_sizes(folder, capacity):
    command, env = [sys.executable, "-c", LAYER], os.environ | ENV | environment(folder) | {NAME: capacity}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as layer:
        used = []
        for sizes in (range(1, 61), range(61, 161)):
            for num_rows in sizes:
                layer.stdin.write(f"{num_rows}\n")
                layer.stdin.flush()
                while layer.stdout.readline() != "done\n":  # vLLM prints, too
                    assert layer.poll() is None
            used.append(asyncio.run(in_use({"layer": psutil.Process(layer.pid)}, folder))["layer"])
        layer.stdin.close()
    return (used[1] - used[0]) / MIB / 100


def test_each_new_number_of_rows_takes_memory_by_default(tmp_path):
    assert 0.1 < mib_for_each_of_hundred_more_sizes(tmp_path, "1024") < 0.5


def test_with_the_soaks_limit_none_takes_more(tmp_path):
    assert mib_for_each_of_hundred_more_sizes(tmp_path, ENV[NAME]) < 0.001
