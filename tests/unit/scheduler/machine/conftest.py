"""What tests of the machine share."""

from __future__ import annotations

import pytest

from tests.unit.scheduler.machine.stepping import JOIN, THREAD, Play


@pytest.fixture
def play_of(make_dialect):
    """A request of a plain dialect with these fields, and with these of the request."""

    def make(*, request: dict | None = None, **fields) -> Play:
        return Play(make_dialect(**{"thread": THREAD, "join": JOIN} | fields), **request or {})

    return make
