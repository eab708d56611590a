"""``forkjoin chat``: ask, and see the answer fork, write side by side and join, as it happens."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from forkjoin.answer import Answer
from forkjoin.client import Client
from forkjoin.errors import ForkJoinError
from forkjoin.events import AnswerDelta
from forkjoin.lanes import Lanes
from forkjoin.options import ForkJoin
from forkjoin.saved import as_completion
from forkjoin.summary import summary
from forkjoin.terminal import beginning
from forkjoin.terminal.lanes_view import colour, table
from forkjoin.terminal.printable import one_line, printable

HELP = """/sequential   ask the last question again without threads, and compare
/save FILE    save the last answer: forkjoin trace FILE draws it
/new          begin a new conversation
/help         this
Ctrl-C ends an answer, Ctrl-D the chat."""

#: Lines below the lanes that show the end of what is being written.
_TAIL = 6


class View:
    """The lanes of one answer, drawn by rich's own thread while events come."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.lanes = Lanes()
        #: The first event has come, or none will.
        self.has_begun = threading.Event()

    @property
    def now_s(self) -> float:
        """Seconds since the answer was asked for."""
        return time.monotonic() - self._began

    def wait(self, waits_for: str) -> None:
        """Show what the answer waits for, unless it has begun."""
        with self._lock:
            if not self.has_begun.is_set():
                self.lanes.wait(waits_for)

    def take(self, event: Any) -> None:
        """Show ``event``."""
        with self._lock:
            self.has_begun.set()
            self.lanes.take(event, self.now_s)

    def stop(self) -> None:
        """Nothing more comes."""
        with self._lock:
            self.has_begun.set()
            if self.lanes.answer.end is None:
                self.lanes.stop(self.now_s)

    def __rich__(self) -> Group:
        with self._lock:
            size, answer = self._console.size, self.lanes.answer
            if answer.end is not None:
                return Group(table(self.lanes, answer.end, width=size.width))
            most = max(1, size.height - _TAIL - 3)
            lanes = table(self.lanes, self.now_s, width=size.width, most=most)
            if answer.waits_for is not None:
                return Group(lanes, _waits(answer.waits_for, self.now_s))
            return Group(lanes, *_written(self.lanes, size.width))


def _waits(wait: str, seconds: float) -> Text:
    """That the answer has not begun, and why."""
    why = beginning.why(wait)
    return Text(one_line(f"waiting for the server, {seconds:.0f} s{f': {why}' if why else ''}"), "yellow")


def _written(lanes: Lanes, width: int) -> list[Text]:
    """The end of what is being written: a line of each thread that runs, or some of the answer."""
    threads = [lane for lane in lanes.in_order() if lane.index >= 0 and lane.is_writing]
    if not threads:
        lines = printable(lanes.answer.text).splitlines()[-_TAIL:]
        return [Text(line[-width:], "dim") for line in lines]
    last_lines = [(lane, printable(lane.text).splitlines()[-1:]) for lane in threads[:_TAIL]]
    return [Text("".join(line)[-width:], colour(lane)) for lane, line in last_lines]


class Chat:
    """A conversation with a server, and the commands in it."""

    def __init__(self, client: Client, console: Console, body: dict[str, Any]) -> None:
        self._client, self._console, self._body = client, console, body
        self._messages: list[dict[str, Any]] = []
        self._last: tuple[Answer, Lanes] | None = None

    def say(self, line: str) -> None:
        """Do what ``line`` says: a command, or a question. What goes wrong is shown, and the chat goes on."""
        try:
            if not line.startswith("/"):
                self.ask(line)
            elif line == "/sequential":
                self._sequential()
            elif line == "/new":
                self._messages, self._last = [], None
            elif line.startswith("/save "):
                self.save(line.removeprefix("/save ").strip())
            else:
                self._console.print(HELP, highlight=False, markup=False)
        except ForkJoinError as error:
            self._console.print(printable(str(error)), style="red", highlight=False, markup=False)
        except KeyboardInterrupt:
            self._console.print("cancelled", style="yellow")

    def ask(self, question: str) -> None:
        """Show the answer as it comes, then its text. Raises ForkJoinError if there is none."""
        asked = [*self._messages, {"role": "user", "content": question}]
        answer, lanes = self._answer(asked)
        self._messages = [*asked, {"role": "assistant", "content": answer.content}]
        self._last = answer, lanes
        self._console.print(printable(answer.content), highlight=False, markup=False)
        self._console.print(summary(answer, lanes.answer.end), style="bold", highlight=False)

    def save(self, name: str) -> None:
        """Write the last answer into the file ``name``. Raises ForkJoinError if that can't be."""
        if self._last is None:
            raise ForkJoinError("/save: expected an answer to save, got none: ask a question")
        _save(name, *self._last)

    def _sequential(self) -> None:
        if self._last is None:
            raise ForkJoinError("/sequential: expected a question before it, got none: ask one")
        answer, lanes = self._answer(self._messages[:-1], {"enabled": False})
        forked, sequential = self._last[1].answer.end or 0.0, lanes.answer.end or 0.0
        self._console.print(f"forked      {summary(self._last[0], forked)}", highlight=False)
        self._console.print(f"sequential  {summary(answer, sequential)}", highlight=False)
        if forked:
            self._console.print(f"{sequential / forked:.2f} times the time", style="bold", highlight=False)

    def _answer(
        self, messages: list[dict[str, Any]], forkjoin: ForkJoin | None = None
    ) -> tuple[Answer, Lanes]:
        view = View(self._console)
        options: ForkJoin = {**self._body.get("forkjoin", {}), **(forkjoin or {})}
        more = {key: value for key, value in self._body.items() if key != "forkjoin"}
        more["request_id"] = name = uuid4().hex
        with Live(view, console=self._console, refresh_per_second=12):
            try:
                beginning.watch(self._client, name, view.has_begun, view.wait)
                with self._client.stream(messages, forkjoin=options, **more) as events:
                    for event in events:
                        view.take(event)
            finally:
                view.stop()
        return events.answer, view.lanes


def _save(name: str, answer: Answer, lanes: Lanes) -> None:
    try:
        Path(name).write_text(json.dumps(as_completion(answer, lanes), indent=1) + "\n")
    except OSError as error:
        raise ForkJoinError(f"could not write {name}: {error.strerror}: name another file") from error


def run(client: Client, body: dict[str, Any], question: str | None, save: str | None) -> None:
    """Chat until the end of the input; of a pipe, all of it is one question.

    Raises ForkJoinError for one question that has no answer, or whose answer can't be saved.
    """
    is_piped = not sys.stdin.isatty()
    if is_piped and question is None:
        question = _piped()
    if question is not None and not sys.stdout.isatty():
        _plain(client, body, question, save)
        return
    chat = Chat(client, Console(), body)
    if question is not None:
        chat.ask(question)
        if save is not None:
            chat.save(save)
        return
    with _history():
        for line in _lines():
            chat.say(line)


def _plain(client: Client, body: dict[str, Any], question: str, save: str | None) -> None:
    """Write the transcript as it comes, and nothing else."""
    lanes, began = Lanes(), time.monotonic()
    with client.stream(question, **body) as events:
        for event in events:
            lanes.take(event, time.monotonic() - began)
            if isinstance(event, AnswerDelta):
                sys.stdout.write(event.text)
                sys.stdout.flush()
    sys.stdout.write("\n")
    if save is not None:
        _save(save, events.answer, lanes)


def _piped() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ForkJoinError(f"expected a question as {error.encoding} text, got other bytes") from error


def _lines() -> Iterator[str]:
    """What is typed, line by line, until Ctrl-D."""
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            print("\nCtrl-D ends the chat")
            continue
        except EOFError:
            print()
            return
        if line:
            yield line


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines of earlier chats at the arrow keys, where Python has readline; nobody else may read them."""
    try:
        import readline
    except ImportError:
        yield
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "forkjoin"
    file = folder / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            readline.set_history_length(1000)
            readline.write_history_file(file)
