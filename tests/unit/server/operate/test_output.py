from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from forkjoin_server.operate.output import Output

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
NEVER_FAILS = "from forkjoin_server.operate.output import never_fail; never_fail(); "


@FULL
def test_what_a_full_disk_does_not_take_is_dropped():
    with open("/dev/full", "wb", buffering=0) as full:
        assert not Output(full.fileno()).write(b"lost\n")


def test_output_is_written_again_when_a_pipe_has_a_reader_again(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    output = Output(writer)
    assert output.write(b"1\n")
    assert os.read(reader, 99) == b"1\n"
    os.close(reader)
    assert not output.write(b"2\n")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert output.write(b"3\n")
    assert os.read(reader, 99) == b"3\n"
    os.close(reader)
    os.close(writer)


def test_output_waits_for_a_pipe_that_does_not_block():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen(["wc", "-c"], stdin=reader, stdout=subprocess.PIPE, text=True) as counts:
        os.close(reader)
        assert Output(writer).write(b"x" * 1_000_000)
        os.close(writer)
        assert counts.stdout.read().strip() == "1000000"


LIMITED = """
import os, resource, signal, sys
from forkjoin_server.operate.output import Output
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
output = Output(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
told = [output.write(b"first\\n"), output.write(b"second\\n"), output.write(b"third\\n")]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
told += [output.write(b"fourth\\n")]
sys.stderr.write(repr(told))
"""


def test_a_line_that_a_disk_took_a_part_of_is_not_the_beginning_of_another(tmp_path):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    with (tmp_path / "log").open("w") as log:
        over = subprocess.run(
            [sys.executable, "-c", LIMITED],
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        )
    assert over.stderr == "[True, False, False, True]"
    assert (tmp_path / "log").read_text() == "first\nseco\nfourth\n"


@FULL
@pytest.mark.parametrize("where", ["full", "no reader", "closed"])
def test_a_process_that_can_not_print_goes_on_and_ends_with_its_own_status(where):
    reader, writer = os.pipe()
    os.close(reader)
    shell = {"full": ">/dev/full 2>&1", "no reader": "2>&1", "closed": ">&- 2>&- <&-"}[where]
    printing = "print('x' * 99_999); print('y', file=sys.stderr, flush=True)"
    code = f"{NEVER_FAILS}import sys; {printing}; sys.exit(3)"
    over = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, code], stdout=writer, timeout=60
    )
    os.close(writer)
    assert over.returncode == 3


def test_a_descriptor_that_is_closed_is_not_the_next_file_that_is_opened(tmp_path):
    path = tmp_path / "data"
    code = f"{NEVER_FAILS}f = open({str(path)!r}, 'w'); print('into data?'); assert f.fileno() > 2"
    subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&- <&-', sys.executable, code], timeout=60, check=True
    )
    assert path.read_text() == ""


def test_what_is_printed_comes_at_the_end_of_each_line_whatever_its_characters():
    code = f"{NEVER_FAILS}import os; print('\\udcff'); os._exit(0)"
    over = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=True)
    assert over.stdout == b"\\udcff\n"


def test_the_relay_of_json_logs_writes_again_when_it_can_and_says_how_much_it_lost(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    os.close(reader)
    command = [sys.executable, "-m", "forkjoin_server.operate.logs"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writer) as relay:
        os.close(writer)
        os.write(relay.stdin.fileno(), b"1\n2\n3\n")
        while not _waits_for_more(relay):
            time.sleep(0.01)
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as again:
            relay.communicate(b"4\n", timeout=60)
            entries = [json.loads(line) for line in again]
    assert relay.returncode == 0
    lost = "3 lines before this one were lost: they could not be written"
    assert [(e["level"], e["message"]) for e in entries] == [("WARNING", lost), ("INFO", "4")]


def _waits_for_more(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has read all that its pipe had, and sleeps until there is more."""
    state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0]
    unread = fcntl.ioctl(process.stdin.fileno(), termios.FIONREAD, b"\0" * 4)
    return (unread, state) == (b"\0" * 4, "S")
