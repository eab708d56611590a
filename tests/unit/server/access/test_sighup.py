"""A SIGHUP of the first process makes every API server read its keys again, and ends none of the others."""

from __future__ import annotations

import subprocess
import sys

from forkjoin_server.access.keys import line_of

#: As vLLM starts them: spawned, by these names; the engine knows nothing of the signal.
SCRIPT = """
import asyncio, multiprocessing, os, signal, sys
from pathlib import Path
from types import SimpleNamespace

from forkjoin_server.access import sighup
from forkjoin_server.access.access import Access
from forkjoin_server.access.keys import line_of


def serve(path, name, told):
    async def run():
        args = SimpleNamespace(forkjoin_api_key_file=path, additional_config={}, api_server_count=2)
        scope = {"app": SimpleNamespace(state=SimpleNamespace(args=args))}
        access = Access([])
        access.start(scope)
        told.put(("serves", name))
        while access.guard(scope).ring.find("two") is None:
            await asyncio.sleep(0.01)
        told.put(("has read", name))

    asyncio.run(run())


def compute(path, name, told):
    told.put(("serves", name))
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    path, context = sys.argv[1], multiprocessing.get_context("spawn")
    sighup.hold()
    os.kill(os.getpid(), signal.SIGHUP)
    sighup.hand_on()
    told = context.Queue()
    names = {"ApiServer_0": serve, "ApiServer_1": serve, "EngineCore_DP0": compute}
    children = [context.Process(target=f, args=(path, n, told), name=n) for n, f in names.items()]
    for child in children:
        child.start()
        os.kill(child.pid, signal.SIGHUP)
    assert {told.get(timeout=240) for _ in names} == {("serves", n) for n in names}
    Path(path).write_text(line_of("b", "two"))
    os.kill(os.getpid(), signal.SIGHUP)
    assert {told.get(timeout=240) for _ in range(2)} == {("has read", n) for n in list(names)[:2]}
    engine = children[-1]
    os.kill(engine.pid, signal.SIGHUP)
    assert engine.is_alive()
    engine.terminate()
    print([child.join(60) or child.exitcode for child in children])
"""


def test_a_sighup_reaches_all_api_servers_and_ends_no_process(tmp_path):
    script, path = tmp_path / "servers.py", tmp_path / "keys.yaml"
    script.write_text(SCRIPT)
    path.write_text(line_of("a", "one"))
    done = subprocess.run(
        [sys.executable, str(script), str(path)], capture_output=True, text=True, timeout=800, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[0, 0, -15]\n"), done.stderr
