"""``forkjoin chat`` on a stand-in for a server."""

from __future__ import annotations

import io
import json
import re
import threading
import time

import httpx
import pytest
from rich.console import Console

from forkjoin import Client, ForkJoinError
from forkjoin.terminal import chat, commands
from forkjoin.terminal.chat import Chat
from forkjoin.terminal.commands import main
from tests.client.test_reading import announced, chunk, ended

USAGE = {"completion_tokens": 9, "forkjoin": {"num_threads": 2, "critical_path_tokens": 6, "total_tokens": 9}}
CHUNKS = [
    chunk(content="well "),
    chunk(threads=announced(0, 1)),
    chunk(threads=[{"index": 0, "content": "left"}]),
    chunk(threads=[ended(0), ended(1)]),
    chunk(content="\x1b[31mdone", finish_reason="stop"),
    {"choices": [], "usage": USAGE},
]


class Server:
    """Answers each request by ``CHUNKS``; what was asked is in ``bodies``."""

    def __init__(self):
        self.bodies = []
        self.chunks = CHUNKS

    def __call__(self, request):
        self.bodies.append(json.loads(request.content))
        text = "".join(f"data: {json.dumps(c)}\n\n" for c in self.chunks) + "data: [DONE]\n\n"
        return httpx.Response(200, text=text)


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def client(server):
    return Client("http://s", http=httpx.Client(transport=httpx.MockTransport(server)))


@pytest.fixture
def talk(client):
    """Says lines, and returns what is shown."""
    out = io.StringIO()
    conversation = Chat(client, Console(file=out, width=100, force_terminal=True, color_system=None), {})

    def say(line):
        before = len(out.getvalue())
        conversation.say(line)
        return out.getvalue()[before:]

    return say


def test_an_answer_is_shown_as_lanes_then_as_text_then_in_numbers(talk):
    said = talk("hello")
    assert "T0" in said
    assert "┫" in said
    assert "well �[31mdone" in said
    assert "2 threads · 9 tokens in 6 steps · 1.50 tokens a step" in said


WAITS = {
    "engine": 0,
    "waiting": {"requests": 1, "threads": 0, "for_room": 1},
    "num_families": 1,
    "num_left_out": 0,
}


def waiting(request, state, *waits):
    """The families of a server in which only ``request`` waits."""
    counts = {"total_tokens": 0, "critical_path_tokens": 0, "kv_blocks": 0}
    row = {
        "request_id": f"chatcmpl-{request['request_id']}-fj1",
        "age_s": 1.0,
        "state": state,
        "waits_for": waits,
        "threads": {},
        "peak_kv_blocks": None,
        "expected_kv_blocks": None,
    }
    return httpx.Response(200, json={"engines": [WAITS | {"families": [row | counts]}]})


@pytest.mark.parametrize(
    ("families", "told"),
    [
        (lambda asked: waiting(asked, "waiting", "room"), "s: it is the next to start, and waits for a slot"),
        (lambda asked: waiting(asked, "waiting", "turn"), "s: other requests start before it"),
        (lambda asked: waiting(asked, "prefill"), "s: its prompt is being computed"),
        (
            lambda asked: waiting({"request_id": "another"}, "waiting", "room"),
            r"waiting for the server, \d+ s *$",
        ),
        (
            lambda asked: httpx.Response(401, json={"error": {"message": "a key"}}),
            r"waiting for the server, \d+ s *$",
        ),
    ],
    ids=["room", "turn", "prefill", "not_listed", "closed"],
)
def test_before_its_first_token_an_answer_says_how_long_it_waits_and_why(server, monkeypatch, families, told):
    """The server answers when its families have been asked for."""
    monkeypatch.setattr(chat.beginning, "EVERY_S", 0.01)
    has_asked, views = threading.Event(), []

    def served(request):
        if request.method == "GET":
            has_asked.set()
            return families(server.bodies[-1])
        answer = server(request)
        assert has_asked.wait(120)
        while not re.search(told, show(), flags=re.M):
            time.sleep(0.01)
        return answer

    def show():
        out = io.StringIO()
        Console(file=out, width=150, color_system=None).print(views[-1])
        return out.getvalue()

    class Seen(chat.View):
        def __init__(self, console):
            super().__init__(console)
            views.append(self)

    monkeypatch.setattr(chat, "View", Seen)
    client = Client("http://s", http=httpx.Client(transport=httpx.MockTransport(served)))
    Chat(client, Console(file=io.StringIO(), width=100), {}).ask("hello")
    assert "waiting for the server" not in show()
    (wait,) = views[-1].lanes.answer.waits
    assert wait.end is not None


def test_the_next_question_goes_on_from_the_answer_and_new_forgets_it(talk, server):
    talk("one")
    talk("two")
    talk("/new")
    talk("three")
    contents = [[m["content"] for m in body["messages"]] for body in server.bodies]
    assert contents == [["one"], ["one", "well \x1b[31mdone", "two"], ["three"]]


def test_sequential_asks_the_same_without_threads_and_compares(talk, server):
    talk("one")
    server.chunks = [
        chunk(content="x", finish_reason="stop"),
        {"choices": [], "usage": {"completion_tokens": 8}},
    ]
    said = talk("/sequential")
    assert server.bodies[1]["messages"] == server.bodies[0]["messages"]
    assert server.bodies[1]["forkjoin"] == {"include_threads": True, "enabled": False}
    assert "forked      2 threads · 9 tokens in 6 steps" in said
    assert "sequential  no threads · 8 tokens" in said
    assert "times the time" in said


def test_a_saved_answer_is_a_chat_completion_with_its_lanes(talk, tmp_path):
    talk("one")
    talk(f"/save {tmp_path}/x.json")
    saved = json.loads((tmp_path / "x.json").read_text())
    assert [t["title"] for t in saved["choices"][0]["message"]["threads"]] == ["T0", "T1"]
    assert [lane["index"] for lane in saved["lanes"]] == [-1, 0, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sequential", "expected a question before it"),
        ("/save x", "expected an answer to save"),
        ("/what", "/save FILE    save the last answer"),
    ],
)
def test_a_command_that_can_not_be_says_why(talk, line, message):
    assert message in talk(line)


def test_ctrl_c_cancels_the_answer_and_not_the_program(talk, server, monkeypatch):
    def interrupted(view, event):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chat.View, "take", interrupted)
        assert "cancelled" in talk("one")
    assert "done" in talk("two")
    assert [m["content"] for m in server.bodies[1]["messages"]] == ["two"]


def test_what_a_server_refuses_is_said_and_the_chat_goes_on(talk, server):
    server.chunks = [{"error": {"message": "no \x1b[2J luck"}}]
    assert "no �[2J luck" in talk("one")
    server.chunks = CHUNKS
    assert "done" in talk("two")


def test_a_pipe_gets_the_text_alone(client, capsys, tmp_path):
    chat.run(client, {}, "one", str(tmp_path / "x.json"))
    assert capsys.readouterr().out == "well \x1b[31mdone\n"
    assert (tmp_path / "x.json").exists()


def test_a_pipe_in_is_one_question(client, server, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    chat.run(client, {"model": "m"}, None, None)
    assert [m["content"] for m in server.bodies[0]["messages"]] == ["one\ntwo\n"]
    assert server.bodies[0]["model"] == "m"


def test_a_command_that_fails_ends_with_one_sentence(capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["chat", "nowhere", "--ask", "x"])
    assert capsys.readouterr().err.startswith("forkjoin: base_url: expected http://host:port")


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def command(request, client, monkeypatch, capsys):
    """Runs ``forkjoin chat --ask one`` with more arguments; the status, and what it wrote to both outputs."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: request.param)
    monkeypatch.setattr(commands, "Client", lambda url: client)

    def run(*argv):
        with pytest.raises(SystemExit) as ended:
            main(["chat", "--ask", "one", *map(str, argv)])
        return ended.value.code, *capsys.readouterr()

    return run


def test_a_question_without_an_answer_ends_with_one_sentence_and_nothing_is_saved(command, server, tmp_path):
    server.chunks = [{"error": {"message": "no \x1b[2J luck"}}]
    status, out, err = command("--save", tmp_path / "x.json")
    assert status == 1
    assert err == "forkjoin: expected more of the answer, got an error of the server's: no �[2J luck\n"
    assert "luck" not in out
    assert not (tmp_path / "x.json").exists()


def test_an_answer_that_can_not_be_saved_is_shown_and_the_command_fails(command, tmp_path):
    status, out, err = command("--save", tmp_path / "no" / "x.json")
    assert status == 1
    assert "done" in out
    assert (
        err
        == f"forkjoin: could not write {tmp_path}/no/x.json: No such file or directory: name another file\n"
    )


def test_ctrl_c_ends_the_one_question(command, monkeypatch):
    def interrupted(lanes, event, at):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.Lanes, "take", interrupted)
    assert command()[0] == 130


def test_a_pipe_that_is_no_text_ends_with_one_sentence(client, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    with pytest.raises(ForkJoinError, match="expected a question as utf-8 text"):
        chat.run(client, {}, None, None)
