"""Server-sent events, from bytes."""

from __future__ import annotations


class SseDecoder:
    r"""Puts the data of events together, however the bytes are cut.

    Only ``\n`` and ``\r\n`` end a line: JSON may hold other characters that Python takes for line ends.

    >>> SseDecoder().feed(b'data: {"a": 1}\n\n: a comment\n\ndata: [DO')
    ['{"a": 1}']
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[str]:
        """The data of each event that ``received`` completes."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        events = []
        for line in lines:
            field, _, value = line.removesuffix(b"\r").partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not field and not value and self._data:
                events.append(b"\n".join(self._data).decode())
                self._data = []
        return events
