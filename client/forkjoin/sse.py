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
        #: The pieces of a line that has not ended. One of a large tree may be megabytes long.
        self._rest: list[bytes] = []
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[str]:
        """The data of each event that ``received`` completes. Raises StreamBroken for what is no UTF-8."""
        self._rest.append(received)
        if b"\n" not in received:
            return []
        *lines, rest = b"".join(self._rest).split(b"\n")
        self._rest = [rest]
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
