from __future__ import annotations

import json
import logging
import logging.config
import subprocess
import sys
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.publish import event_log
from forkjoin_scheduler.publish.events import FamilyEnded, Forked, Joined, NewThread, ThreadEnded, Tokens
from forkjoin_server.operate import logs

KEY = "fj" + "0" * 32


def _formatted(message="hello", exc_info=None, **forkjoin):
    record = logging.LogRecord("a.b", logging.WARNING, "f.py", 1, message, (), exc_info)
    record.forkjoin = forkjoin
    return json.loads(logs.JsonFormatter().format(record))


def test_a_record_is_an_object_with_time_level_logger_message_and_process():
    entry = _formatted("two\nlines")
    assert entry.pop("time").endswith("+00:00")
    assert isinstance(entry.pop("pid"), int)
    assert entry == {"level": "WARNING", "logger": "a.b", "message": "two\nlines", "process": "MainProcess"}


def test_it_has_the_request_that_is_being_answered_and_the_thread_that_it_is_about():
    token = logs.REQUEST_ID.set(f"mine-{KEY}")
    try:
        assert _formatted()["request_id"] == f"mine-{KEY}"
        entry = _formatted(request_id=f"chatcmpl-mine-{KEY}-0a1b", thread=3)
    finally:
        logs.REQUEST_ID.reset(token)
    assert (entry["request_id"], entry["thread"]) == (f"chatcmpl-mine-{KEY}-0a1b", 3)
    assert entry["request_key"] == KEY
    assert "request_id" not in _formatted()


def test_a_traceback_is_a_field():
    try:
        int("no")
    except ValueError:
        entry = _formatted(exc_info=sys.exc_info())
    assert entry["exception"].endswith("literal for int() with base 10: 'no'")


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--log-format", "json"], True),
        (["m", "--log_format=json", "--port", "1"], True),
        (["--log-format", "text"], False),
        (["--log-format"], False),
        (["json"], False),
    ],
)
def test_json_is_wanted_where_the_flag_says_so(argv, wanted):
    assert logs.wants_json(argv) is wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a warning\n", "a warning"),
        (b"  0%\r 50%\r100%\n", "100%"),
        (b"100%\r\n", "100%"),
        (b"{not json}\n", "{not json}"),
        (b"\xff\n", "\ufffd"),
    ],
)
def test_the_relay_makes_an_object_of_a_line_that_is_none(line, message):
    (entry,) = map(json.loads, logs.as_json(line))
    assert (entry["message"], entry["logger"]) == (message, "printed")
    assert set(entry) == set(_formatted())


def test_the_relay_leaves_objects_as_they_are_and_drops_blank_lines():
    assert logs.as_json(b'{"a": 1}\n') == ['{"a": 1}']
    assert logs.as_json(b"\n") == logs.as_json(b" \r\n") == []


@pytest.mark.parametrize("printed", ["no end yet", "50%\r", "{"])
def test_the_relay_parts_an_entry_from_what_another_process_had_begun_to_print(printed):
    record = logging.LogRecord("a.b", logging.INFO, "f.py", 1, 'says {"time": "now"}', (), None)
    entry = logs.JsonFormatter().format(record)
    *before, last = logs.as_json(f"{printed}{entry}\n".encode())
    assert last == entry
    assert [json.loads(b)["message"] for b in before] == [printed.strip()]


def _logged(code: str, *, status: int = 0) -> list[str]:
    """The messages of a process that runs ``code`` and ends with ``status``: all that it prints is entries."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == status, done.stderr
    assert done.stderr == ""
    return [json.loads(line)["message"] for line in done.stdout.splitlines()]


def test_all_that_a_process_and_its_children_print_is_relayed_until_they_have_ended():
    code = (
        "import os, subprocess, sys; from forkjoin_server.operate.logs import start_relay; start_relay();"
        "print('own'); os.write(2, b'native\\n');"
        "subprocess.run(['sh', '-c', 'echo child; (sleep 1; echo late) &'], check=True); raise ValueError('no')"
    )
    assert {"own", "native", "child", "late", "ValueError: no"} <= set(_logged(code, status=1))


def test_long_entries_of_several_processes_stay_whole_where_the_relay_does_not_keep_up():
    code = (
        "import logging, logging.config, os; from forkjoin_server.operate.logs import config, start_relay; start_relay();"
        "logging.config.dictConfig(config('INFO', 'info', [])); pids = [os.fork() for _ in range(2)];"
        "[logging.getLogger('vllm').info('x' * 10_000) for _ in range(300)];"
        "[os.waitpid(pid, 0) for pid in pids if pid and all(pids)]"
    )
    assert [m for m in _logged(code) if "xxx" in m] == ["x" * 10_000] * (4 * 300)


def test_the_config_is_one_that_python_takes_and_keeps_quiet_paths_out():
    code = (
        "import json, logging, logging.config, sys; from forkjoin_server.operate.logs import config;"
        "logging.config.dictConfig(json.loads(json.dumps(config('DEBUG', 'info', ['/health']))));"
        "logging.getLogger('vllm.x').debug('one');"
        "access = logging.getLogger('uvicorn.access');"
        "[access.info('%s - \"%s %s HTTP/%s\" %d', 'me', 'GET', path, '1.1', 200) for path in ('/health', '/v1')]"
    )
    assert _logged(code) == ["one", 'me - "GET /v1 HTTP/1.1" 200']


EVENTS = [
    Forked(
        parent_index=-1,
        shared_tokens=3,
        threads=[NewThread(index=i, number=str(i), title="") for i in range(2)],
    ),
    ThreadEnded(index=1, reason=ThreadEnd.STOP, num_tokens=9),
    Tokens(index=1, token_ids=[1], text="a"),
    Joined(parent_index=-1, prefilled_tokens=4),
    FamilyEnded(family="r", num_threads=2, total_tokens=20, critical_path_tokens=12, surplus_tokens=0),
]


class Kept(logging.Handler):
    """Keeps the records of a logger, whatever else is set up in this process."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def kept(monkeypatch):
    """Listen to a logger: returns the list that its records come to."""

    def listen(logger):
        handler = Kept()
        monkeypatch.setattr(logger, "handlers", [handler])
        return handler.records

    return listen


@pytest.fixture
def told(kept):
    """What is logged of the events, once somebody wants it."""
    level, records = event_log.LOG.level, kept(event_log.LOG)
    event_log.switch_on()
    for event in EVENTS:
        event_log.log("r", event)
    event_log.LOG.setLevel(level)
    return records


def test_forks_joins_and_ends_are_logged_with_their_ids(told):
    assert [r.getMessage() for r in told] == [
        "r: the request forked into 2 threads",
        "r: thread 1 ended: stop, 9 tokens",
        "r: the request joined its threads, 4 tokens prefilled",
        "r: the request ended: 2 threads, 20 tokens, 12 on the critical path",
    ]
    assert [r.forkjoin["event"] for r in told] == ["forked", "thread_ended", "joined", "family_ended"]
    assert [r.forkjoin.get("thread") for r in told] == [None, 1, None, None]
    assert {r.forkjoin["request_id"] for r in told} == {"r"}


def test_nothing_is_logged_of_them_unasked(monkeypatch):
    monkeypatch.setattr(logging.getLogger("vllm"), "level", logging.DEBUG)
    assert not event_log.is_wanted()
    monkeypatch.setattr(event_log.LOG, "level", logging.INFO)
    assert event_log.is_wanted()


def test_the_engine_names_the_request_that_it_warns_of(kept):
    from forkjoin_scheduler.vllm_seam.starts import params_reader

    logger = logging.getLogger("vllm.forkjoin.engine")
    records, level = kept(logger), logger.level
    logger.setLevel(logging.WARNING)  # other tests may have set vLLM's
    params_reader._warn(SimpleNamespace(request_id="r"), "decoding sequentially")
    logger.setLevel(level)
    (record,) = records
    assert (record.getMessage(), record.forkjoin) == ("r: decoding sequentially", {"request_id": "r"})
