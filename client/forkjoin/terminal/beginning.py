"""What an answer waits for before its first token.

Its stream can't say so: it has not begun. The server does, where its families may be seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from forkjoin.client import Client
from forkjoin.errors import ForkJoinError
from forkjoin.families import PATH, Families, Family
from forkjoin.parsing import parsed

#: Seconds before the server is asked, and between two questions. It answers once a second.
EVERY_S = 1.0
#: What an answer waits for if nothing else is known of it, and while its prompt is computed.
SERVER, PROMPT = "the server", "its prompt"
#: By what the server says: a sentence.
_WHY = {
    "room": "it is the next to start, and waits for a slot or for KV blocks",
    "turn": "other requests start before it",
    "grammar": "the grammar of its response_format is being compiled",
    PROMPT: "its prompt is being computed",
}


def why(wait: str) -> str:
    """What ``wait`` means, empty if that is not known."""
    return _WHY.get(wait, "")


def watch(client: Client, name: str, has_begun: threading.Event, tell: Callable[[str], None]) -> None:
    """Tell every second what the request ``name`` waits for, until it ``has_begun``. Returns at once."""
    threading.Thread(target=_ask, args=(client, name, has_begun, tell), daemon=True).start()


def _ask(client: Client, name: str, has_begun: threading.Event, tell: Callable[[str], None]) -> None:
    if has_begun.wait(EVERY_S):
        return
    tell(SERVER)
    while not has_begun.is_set():
        try:
            seen = Families.model_validate(parsed(client.get(PATH).content))
        except (ForkJoinError, ValueError, RuntimeError):
            return  # it has none, shows none to this key, or the chat is over and its client closed
        tell(_wait_of(seen.named(name)))
        has_begun.wait(EVERY_S)


def _wait_of(family: Family | None) -> str:
    if family is None:
        return SERVER
    if family.state == "prefill":
        return PROMPT
    return next(iter(family.waits_for), SERVER)
