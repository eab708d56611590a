"""A newcomer's first hour on the barest Debian: the commands of the README, as they stand there."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tooling.bare_debian import BareDebian, why_not

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

#: Seconds for what downloads and installs gigabytes, and for an engine that compiles its kernels.
INSTALLS, STARTS = 3000, 900

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
    pytest.mark.timeout(2 * INSTALLS + STARTS),
]


@pytest.fixture(scope="module")
def debian() -> Iterator[BareDebian]:
    """A Debian with nothing but what the README asks for, and a clean checkout of what is committed."""
    with tempfile.TemporaryDirectory(prefix="bare-debian-") as folder:
        debian = BareDebian.made(Path(folder) / "root")
        debian.run("apt-get update")
        debian.run(in_readme(r"^ {4}(apt-get install [^#\n]*)"), timeout=INSTALLS)
        debian.check_out(ROOT)
        yield debian


def in_readme(pattern: str) -> str:
    """The one place of the README that fits."""
    (found,) = re.findall(pattern, README, flags=re.M)
    return found


def test_make_serve_starts_a_server_that_forks_and_ends_with_one_line(
    debian: BareDebian, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        assert taken.connect_ex(("127.0.0.1", 8000)), "the README's server needs port 8000, which is taken"
    log = tmp_path / "log"
    server = debian.start(in_readme(r"^```\n(make serve)\n```"), log)
    try:
        await_announcement(server, log)
        stream = debian.run(in_readme(r"^```\n(curl [^`]*)```"))
        chunks = [json.loads(line) for line in re.findall(r"^data: (\{.*)", stream, flags=re.M)]
        assert chunks[-1]["usage"]["forkjoin"] == usage_in_readme()
        assert stream.rstrip().endswith("data: [DONE]")
        before = log.read_text()
        os.killpg(server.pid, signal.SIGINT)  # as Ctrl-C does
        server.wait(60)
    finally:
        server.kill()
    said = log.read_text().removeprefix(before)
    assert said.count("drained: all requests in flight were answered") == 1
    assert not re.search(r"Traceback|INFO.*\[shutdown\]|INFO: +Finished", said)


def await_announcement(server: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server, which installs itself first, says where it is."""
    end = time.monotonic() + INSTALLS + STARTS
    while "http://localhost:8000/playground" not in log.read_text():
        assert server.poll() is None, f"make serve ended:\n{log.read_text()[-5000:]}"
        assert time.monotonic() < end, f"make serve takes too long:\n{log.read_text()[-5000:]}"
        time.sleep(1)


def usage_in_readme() -> dict[str, int]:
    """The counts that the README shows for its question."""
    counts: dict[str, int] = json.loads(in_readme(r'"usage": .*"forkjoin": (\{[^}]*\})'))
    return counts


def test_make_test_runs_tests_with_and_without_an_engine(debian: BareDebian) -> None:
    assert "`make test`" in README
    some = "tests/unit/scheduler/families/test_family.py tests/engine/test_exact.py -k 'not two_hundred'"
    said = debian.run(f'make test ARGS="{some}"', timeout=INSTALLS + STARTS)
    assert re.search(r"^=+ \d+ passed, 1 deselected", said, flags=re.M)
