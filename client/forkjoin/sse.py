"""Server-sent events, from bytes."""

from __future__ import annotations

from forkjoin.errors import StreamBroken


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
        """The data of each event that ``received`` completes. Raises StreamBroken for what is no UTF-8."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        events = []
        for line in lines:
            field, _, value = line.removesuffix(b"\r").partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not field and not value and self._data:
                events.append(_text(b"\n".join(self._data)))
                self._data = []
        return events


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise StreamBroken(
            f"expected UTF-8 in the stream, got {data[:100]!r}: is this a chat server?"
        ) from error
