"""Stock ``vllm serve`` on the embedded model with more tokens: those of every dialect."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from safetensors.torch import load_file, save_file
from torch import zeros

from forkjoin_bench.ports import free_port
from tests.engine.renamed import with_more_tokens
from tests.importing import ROOT, importable

#: What a server may take to get ready, and to end, on a busy machine.
START_S, END_S = 600, 120


def model_with(folder: Path, tokens: Sequence[str]) -> Path:
    """The embedded model, which writes ``tokens`` too, if something makes it."""
    model = with_more_tokens(folder, list(tokens))
    config = json.loads((model / "config.json").read_text())
    more = len(tokens)
    weights = load_file(model / "model.safetensors")
    for name, tensor in weights.items():
        if tensor.shape[0] == config["vocab_size"]:
            padded = zeros(tensor.shape[0] + more, *tensor.shape[1:], dtype=tensor.dtype)
            padded[: tensor.shape[0]] = tensor
            weights[name] = padded
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + more}))
    return model


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """The address of a server with nothing of this project but what forces tokens."""
    port = free_port()
    command = [sys.executable, "-m", "forkjoin_bench.vllm_seam.stock", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "stock"]
    command += ["--dtype", "float32", "--max-model-len", "4096", "--block-size", "32", "--enforce-eager"]
    command += ["--logits-processors", "tests.reference_clients.forced:Forced"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"} | importable(ROOT)
    env["VLLM_MAX_STOP_STRINGS"] = "32"  # by itself 4, and ParaThinker's paths have more ends
    env.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
        try:
            _wait(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=END_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"vllm serve did not get ready:\n{log.read_text()[-4000:]}")
