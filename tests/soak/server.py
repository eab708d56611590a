"""The server under load: its processes, and its log behind a pipe whose reader may go."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from forkjoin_bench.ports import free_port
from tests.server.conftest import START_S
from tests.soak import memory

#: Few blocks and slots: the traffic is more than fits.
FLAGS = (
    "--max-model-len", "4096", "--block-size", "32", "--num-gpu-blocks-override", "400", "--max-num-seqs", "32",
    "--dtype", "float32", "--enforce-eager", "--log-format", "json",
)  # fmt: skip
#: vLLM has no route for resets without it.
ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
    # oneDNN compiles each matrix product anew for each number of rows and keeps a thousand, of 0.3 MiB each: more than
    # two minutes meet, so that memory would grow throughout. Layers of one shape share theirs, in each step, all the same.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
}


class Log:
    """Copies what comes out of a named pipe into a file; the pipe may lose its reader for a while."""

    def __init__(self, folder: Path) -> None:
        self.pipe, self.file = folder / "pipe", folder / "log"
        os.mkfifo(self.pipe)
        self.file.touch()
        #: How much had been logged when a reader came back last.
        self.size_then = 0
        self._is_open, self._ended = threading.Event(), False
        self._is_open.set()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        with self.file.open("ab", buffering=0) as out:
            while not self._ended:
                self._is_open.wait()
                reader = os.open(self.pipe, os.O_RDONLY | os.O_NONBLOCK)
                while self._is_open.is_set() and not self._ended:
                    try:
                        piece = os.read(reader, 65536)
                    except BlockingIOError:
                        piece = b""
                    out.write(piece)
                    if not piece:
                        time.sleep(0.02)
                os.close(reader)

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Nobody reads."""
        self._is_open.clear()
        try:
            yield
        finally:
            self.size_then = self.file.stat().st_size
            self._is_open.set()

    def end(self) -> None:
        self._ended = True
        self._is_open.set()
        self._thread.join(timeout=10)

    @property
    def goes_on(self) -> bool:
        """Whether anything was logged since a reader came back last."""
        return self.file.stat().st_size > self.size_then

    @property
    def text(self) -> str:
        return self.file.read_text(errors="replace")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, psutil.Process, Log]]:
    """The address of a ready server, its first process and its log. SIGTERM must end it with status 0."""
    port, log = free_port(), Log(folder)
    forkjoin = str(Path(sys.executable).parent / "forkjoin")
    command = [forkjoin, "serve", "--host", "127.0.0.1", "--port", str(port), *FLAGS]
    env = os.environ | ENV | memory.environment(folder)
    # The reader is there, so this does not wait for one.
    with open(log.pipe, "wb", buffering=0) as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, address, log)
        yield address, psutil.Process(process.pid), log
        process.send_signal(signal.SIGTERM)
        if (status := process.wait(timeout=120)) != 0:
            raise AssertionError(f"expected SIGTERM to end the server with status 0, got {status}")
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.end()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Log) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/ready", timeout=10).status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"the server did not get ready:\n{log.text[-4000:]}")


def processes(first: psutil.Process) -> dict[str, psutil.Process]:
    """All processes of the server that do work, by what each is."""
    found = {"api": first}
    for child in first.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            name = " ".join(child.cmdline())
            if "EngineCore" in name:
                found["engine"] = child
            elif "Worker" in name:
                found["worker"] = child
    return found
