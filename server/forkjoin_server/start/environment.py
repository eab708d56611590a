"""The variables ``FORKJOIN_<FLAG>``: flags of fork/join's own, the model and the config file.

They stand between the flags, which win over them, and the file. An empty one is as none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from forkjoin_scheduler.errors import UsageError
from forkjoin_server.operate.in_flight import FILE
from forkjoin_server.start.nearest import nearest

PREFIX = "FORKJOIN_"
#: What may be given beside the flags of our own.
MORE = ("model", "config")

#: Set by ourselves for the processes that we start, or by tools beside the server.
_NOT_FLAGS = re.compile(rf"{FILE}\Z|FORKJOIN_CLIENT_(?:URL|API_KEY)\Z|FORKJOIN_(?:TEST|BENCH|SMOLLM2)_")
#: What Kubernetes sets in every pod for a service whose name begins with "forkjoin".
_SERVICE_LINK = re.compile(
    r"FORKJOIN_(?:\w+_)?(?:SERVICE_(?:HOST|PORT\w*)|PORT(?:_\d+_(?:TCP|UDP|SCTP)\w*)?)\Z"
)


def variable(flag: str) -> str:
    """The variable of ``flag``: FORKJOIN_MAX_FORKS is that of ``max-forks``."""
    return PREFIX + flag.upper().replace("-", "_")


def read(environ: Mapping[str, str], flags: Iterable[str]) -> dict[str, str]:
    """What ``environ`` gives for ``flags``, the model and the file, by flag.

    Raises UsageError naming a FORKJOIN_ variable that is none of theirs, and the nearest that is.
    """
    flag_of = {variable(flag): flag for flag in (*flags, *MORE)}
    given: dict[str, str] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or _NOT_FLAGS.match(name):
            continue
        if flag := flag_of.get(name):
            given |= {flag: text} if text else {}
        elif not _SERVICE_LINK.match(name):
            raise UsageError(
                f"expected a variable of fork/join's, got {name}: did you mean "
                f"{nearest(name, flag_of)}? Unset it, or rename it"
            )
    return given
