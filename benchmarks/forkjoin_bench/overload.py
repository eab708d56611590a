"""``forkjoin bench overload``: far more at once than the KV cache holds, and clients that never read.

Every request forks. Some clients hang up in the middle, some never read. What must hold: each request
is accounted for, ``/health`` answers throughout, memory is bounded in every process, and nothing is left
behind. Beside it, ``--stock`` puts the same to ``vllm serve``, which answers without forking.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from forkjoin_bench.host import host_facts
from forkjoin_scheduler.errors import UsageError
from forkjoin_server.configuration import EMBEDDED_MODEL, EMBEDDED_NAME

QUESTION = "a=482*731, b=9047*36"
#: Outcomes of a request. Lost: none of the others within the time.
OUTCOMES = ("finished", "refused", "failed", "cancelled", "lost")
HEALTH_S = 1.0
#: What a process may grow by: an engine keeps blocks of a fixed size, a front end what waits and is unread.
MAX_GROWTH_MIB = 512
START_S, STOP_S = 900, 60


@dataclass(frozen=True)
class Plan:
    """What is sent, and to what: ``cancelled`` and ``stalled`` of the ``requests`` hang up and never read."""

    requests: int = 2000
    stalled: int = 100
    cancelled: int = 50
    max_tokens: int = 120
    num_blocks: int = 400
    limit_s: float = 1800
    is_stock: bool = False
    flags: tuple[str, ...] = ()


@dataclass
class Result:
    """What came of it. Times in seconds from the moment of sending, memory in MiB by process."""

    outcomes: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    forked: int = 0
    first_token_s: dict[str, float] = field(default_factory=dict)
    finished_s: dict[str, float] = field(default_factory=dict)
    refused_s: dict[str, float] = field(default_factory=dict)
    retry_after_s: dict[str, float] = field(default_factory=dict)
    health_s: dict[str, float] = field(default_factory=dict)
    num_health_failed: int = 0
    memory_mib: dict[str, dict[str, int]] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    #: In what the server wrote until it was told to end.
    num_tracebacks: int = 0
    wall_s: float = 0.0


def problems(plan: Plan, result: Result) -> list[str]:
    """What does not hold of what must."""
    counts, found = result.outcomes, []
    if (total := sum(counts.values())) != plan.requests:
        found.append(f"expected {plan.requests} outcomes, got {total}")
    for outcome in ("failed", "lost"):
        if counts.get(outcome):
            found.append(f"expected no request {outcome}, got {counts[outcome]}")
    if not counts.get("finished"):
        found.append("expected requests to finish, got none")
    if result.num_health_failed or result.health_s.get("max", 0.0) >= HEALTH_S:
        found.append(
            f"expected /health within {HEALTH_S} s, got {result.health_s.get('max', 0.0):.2f} s at most, "
            f"{result.num_health_failed} failures"
        )
    if result.num_tracebacks:
        found.append(f"expected no traceback in the server's log, got {result.num_tracebacks}")
    for name, memory in result.memory_mib.items():
        if memory["peak"] - memory["before"] > MAX_GROWTH_MIB:
            found.append(f"expected {name} to grow by at most {MAX_GROWTH_MIB} MiB, got {memory}")
    found += [f"expected {name} to be 0 behind it, got {n:g}" for name, n in result.left.items() if n]
    return found


# ---- the server ----------------------------------------------------------------------------


@contextlib.contextmanager
def serving(plan: Plan, log: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A server as ``plan`` wants it, ready: its port, and its first process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    argv = ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096", "--block-size", "32"]
    argv += ["--enforce-eager", "--num-gpu-blocks-override", str(plan.num_blocks), *plan.flags]
    if plan.is_stock:
        model = [str(EMBEDDED_MODEL), "--served-model-name", EMBEDDED_NAME]
        command = [sys.executable, "-m", "forkjoin_bench.stock", "serve", *model, *argv]
    else:
        command = [sys.executable, "-m", "forkjoin_server.cli", "serve", *argv]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=out, stderr=out, env=env, process_group=0
        )
        try:
            _wait_until_ready(process, port, log)
            yield port, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _get(port, "/health")[0] == 200:
                return
        time.sleep(0.25)
    raise UsageError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class Watch:
    """Asks for ``/health`` and looks at memory all the while, in a thread of its own."""

    def __init__(self, port: int, process: psutil.Process) -> None:
        self.health_s: list[float] = []
        self.num_failed = 0
        self._port, self._process = port, process
        self.memory = {name: {"before": mib, "peak": mib} for name, mib in self._mib().items()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for name, mib in self._mib().items():
            self.memory.setdefault(name, {"before": mib, "peak": mib})["after"] = mib

    def _run(self) -> None:
        while not self._over.wait(0.2):
            began = time.monotonic()
            try:
                is_well = _get(self._port, "/health")[0] == 200
            except (OSError, http.client.HTTPException):
                is_well = False
            self.health_s.append(time.monotonic() - began)
            self.num_failed += not is_well
            for name, mib in self._mib().items():
                memory = self.memory.setdefault(name, {"before": mib, "peak": mib})
                memory["peak"] = max(memory["peak"], mib)

    def _mib(self) -> dict[str, int]:
        found = {}
        for number, process in enumerate([self._process, *self._process.children(recursive=True)]):
            with contextlib.suppress(psutil.Error):
                name = "first process" if not number else process.name() or str(process.pid)
                while name in found:
                    name += "'"
                found[name] = process.memory_info().rss >> 20
        return found


# ---- the clients ---------------------------------------------------------------------------


@dataclass
class _Told:
    """What one client has seen."""

    outcome: str = "lost"
    status: int = 0
    first_s: float | None = None
    over_s: float | None = None
    retry_after_s: float | None = None
    has_forked: bool = False


def _body(plan: Plan, number: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": EMBEDDED_NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": plan.max_tokens,
        "temperature": 1.0,
        "seed": number,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body


async def _ask(session: aiohttp.ClientSession, plan: Plan, number: int, cancel_after: int | None) -> _Told:
    """Stream one answer; hang up behind ``cancel_after`` of its events."""
    told, began = _Told(), time.monotonic()
    try:
        async with session.post("/v1/chat/completions", json=_body(plan, number)) as response:
            told.status = response.status
            if response.status in (429, 503):
                told.outcome, told.over_s = "refused", time.monotonic() - began
                told.retry_after_s = float(response.headers.get("retry-after", "nan"))
                return told
            if response.status != 200:
                told.outcome = "failed"
                return told
            num_events, has_finished = 0, False
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                num_events += 1
                told.first_s = told.first_s or time.monotonic() - began
                has_finished |= b'"finish_reason":"' in line.replace(b'": "', b'":"')
                told.has_forked |= b'"forkjoin"' in line
                if cancel_after is not None and num_events >= cancel_after:
                    told.outcome = "cancelled"
                    return told
                if line.startswith(b"data: [DONE]"):
                    told.outcome = "finished" if has_finished else "failed"
            told.over_s = time.monotonic() - began
            if told.outcome == "lost":
                told.outcome = "failed"
    except (aiohttp.ClientError, OSError):
        told.outcome = "failed"
    return told


class _NeverReads:
    """Asks for a big answer on a small window, and takes none of it until it is told to hang up."""

    def __init__(self, plan: Plan, port: int, number: int) -> None:
        more = {"logprobs": True, "top_logprobs": 20, "max_tokens": 2000}
        data = json.dumps(_body(plan, number) | more).encode()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + data)

    def hang_up(self) -> _Told:
        """Look at what had come, and close."""
        self._socket.settimeout(1)
        told = _Told("cancelled")
        with contextlib.suppress(OSError):
            head = self._socket.recv(64)
            told.status = int(head.split()[1])
            told.outcome = "refused" if told.status in (429, 503) else "cancelled"
        self._socket.close()
        return told


async def _all(plan: Plan, port: int) -> list[_Told]:
    rng = random.Random(1)
    num_reading = plan.requests - plan.stalled
    cancelled = {n: rng.randint(1, 20) for n in rng.sample(range(num_reading), plan.cancelled)}
    stalled = [_NeverReads(plan, port, num_reading + n) for n in range(plan.stalled)]
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{port}",
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=1 << 20,
    ) as session:
        tasks = [asyncio.create_task(_ask(session, plan, n, cancelled.get(n))) for n in range(num_reading)]
        done, late = await asyncio.wait(tasks, timeout=plan.limit_s)
        for task in late:
            task.cancel()
        told = [task.result() for task in done] + [_Told() for _ in late]
        await asyncio.gather(*late, return_exceptions=True)
    return told + [client.hang_up() for client in stalled]


# ---- what came of it -----------------------------------------------------------------------


def run(plan: Plan, folder: Path) -> Result:
    """Start a server, overload it, and say what came of it."""
    log = folder / ("stock.log" if plan.is_stock else "forkjoin.log")
    with serving(plan, log) as (port, process):
        asyncio.run(_all(Plan(requests=2, stalled=0, cancelled=0, max_tokens=plan.max_tokens), port))
        began = time.monotonic()
        with Watch(port, process) as watch:
            told = asyncio.run(_all(plan, port))
            wall_s = time.monotonic() - began
            left = _wait_until_idle(port)
        num_tracebacks = log.read_text(errors="replace").count("Traceback")
    counts = Counter(t.outcome for t in told)
    return Result(
        outcomes={outcome: counts[outcome] for outcome in OUTCOMES},
        statuses={str(k): n for k, n in sorted(Counter(t.status for t in told).items())},
        forked=sum(t.has_forked for t in told),
        first_token_s=spread([t.first_s for t in told if t.outcome == "finished"]),
        finished_s=spread([t.over_s for t in told if t.outcome == "finished"]),
        refused_s=spread([t.over_s for t in told if t.outcome == "refused"]),
        retry_after_s=spread([t.retry_after_s for t in told]),
        health_s=spread(list(watch.health_s)),
        num_health_failed=watch.num_failed,
        memory_mib=watch.memory,
        left=left,
        num_tracebacks=num_tracebacks,
        wall_s=round(wall_s, 1),
    )


def spread(values: list[float | None]) -> dict[str, float]:
    """The smallest, the percentiles and the largest of ``values``; empty if there are none."""
    known = sorted(v for v in values if v is not None)
    if not known:
        return {}
    at = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(known[round(q * (len(known) - 1))], 3) for name, q in at.items()}


def _wait_until_idle(port: int) -> dict[str, float]:
    """What the server still runs, lets wait or holds blocks for, when that is nothing or a minute over."""
    end = time.monotonic() + 60
    while True:
        text = _get(port, "/metrics")[1].decode()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        left = dict.fromkeys((*names, "forkjoin:threads_running"), 0.0)
        for line in text.splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            if name in left:
                left[name] += float(line.rpartition(" ")[2])
        if not any(left.values()) or time.monotonic() > end:
            return left
        time.sleep(0.2)


# ---- the command ---------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    default = Plan()
    parser.add_argument("--requests", type=int, default=default.requests, metavar="N", help="at once")
    parser.add_argument("--stalled", type=int, default=default.stalled, metavar="N", help="never read")
    parser.add_argument("--cancelled", type=int, default=default.cancelled, metavar="N", help="hang up early")
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens, metavar="N", help="an answer")
    parser.add_argument("--blocks", type=int, default=default.num_blocks, metavar="N", help="of KV cache")
    parser.add_argument("--limit", type=float, default=default.limit_s, metavar="S", help="for all of it")
    parser.add_argument("--stock", action="store_true", help="vllm serve in the place of forkjoin serve")
    parser.add_argument("--out", type=Path, default=Path("build") / "bench", metavar="FOLDER")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="more flags of the server")


def main(args: argparse.Namespace) -> None:
    """Run it, print and write what came of it. Raises UsageError where what must hold does not."""
    plan = Plan(
        args.requests,
        args.stalled,
        args.cancelled,
        args.max_tokens,
        args.blocks,
        args.limit,
        args.stock,
        tuple(args.flags),
    )
    if plan.stalled + plan.cancelled > plan.requests:
        raise UsageError("--requests: expected at least as many as are stalled and cancelled")
    args.out.mkdir(parents=True, exist_ok=True)
    result = run(plan, args.out)
    path = args.out / f"overload-{'stock' if plan.is_stock else 'forkjoin'}.json"
    facts = {"command": args.command, "host": host_facts(), "plan": asdict(plan)}
    path.write_text(json.dumps(facts | {"result": asdict(result)}, indent=2) + "\n")
    for name, value in asdict(result).items():
        print(f"{name:<18} {json.dumps(value)}")
    print(f"written: {path}")
    if (found := problems(plan, result)) and not plan.is_stock:
        raise UsageError("; ".join(found))
    print("\n".join(found) or "all that must hold, holds")
