"""The ids by which clients know threads: of a request's key, and of the thread's index in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ID = re.compile(r"th_(fj[0-9a-f]{32})_(0|[1-9][0-9]{0,9})")
#: The parent of threads that the request itself forked.
ROOT = "root"


@dataclass(frozen=True)
class ThreadName:
    """What an id names: the thread of this ``index`` of the request that has this ``key`` in its id."""

    key: str
    index: int


def thread_id(key: str, index: int) -> str:
    """The id of a thread; of the request itself, which has no index, ``ROOT``."""
    return ROOT if index < 0 else f"th_{key}_{index}"


def name_in(text: str) -> ThreadName | None:
    """What ``text`` names, None if it is no id of a thread.

    >>> name_in(thread_id("fj" + "0" * 32, 3)).index
    3
    """
    found = _ID.fullmatch(text)
    return None if found is None else ThreadName(found[1], int(found[2]))
