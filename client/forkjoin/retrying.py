"""When to ask again: pure rules; whoever asks, waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

#: Statuses after which the same request may succeed: nothing of it was done.
_PASSING = frozenset({408, 429, 502, 503, 504})


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """The seconds that ``Retry-After`` asks for, given as a number or as a date. None if it says nothing."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        # RFC 9110 dates are GMT; one without a zone is meant so.
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_s
    # "inf" and "nan" are numbers to Python.
    return max(0.0, seconds) if seconds < float("inf") else None


@dataclass(frozen=True)
class Retries:
    """How often to ask again, and how long to wait before."""

    #: Attempts after the first one; 0: none.
    max_retries: int = 2
    #: The first wait. It doubles each time.
    base_s: float = 0.5
    #: The longest wait of our own choice.
    cap_s: float = 8.0
    #: The longest wait that a server may ask for. If it asks for more, its error is raised at once.
    max_retry_after_s: float = 60.0

    def wait_s(
        self, num_retries: int, status: int | None, retry_after: float | None, chance: float
    ) -> float | None:
        """How long to wait before the next attempt, None to give up.

        Args:
            num_retries: how often it was asked again so far.
            status: of the answer, None if nobody answered.
            retry_after: what the server asked for, in seconds.
            chance: from 0 to 1, so that clients refused together don't return together.
        """
        if num_retries >= self.max_retries or not (status is None or status in _PASSING):
            return None
        backoff = min(self.cap_s, self.base_s * 2.0**num_retries)
        if retry_after is None:
            return backoff * (0.5 + chance / 2)
        if retry_after > self.max_retry_after_s:
            return None
        return retry_after + self.base_s * chance


#: How often the clients ask again by themselves.
RETRIES = Retries()
