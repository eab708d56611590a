"""A policy of the user's own, by the path of its class."""

from __future__ import annotations

import pkgutil
from typing import Any


class WrongAnswer(ValueError):
    """A policy answered with what names nothing that it was asked about.

    The message says what was expected, and what the answer was.
    """


def own_policy(path: str, kind: type) -> Any:
    """A new policy of the class at ``path``; ``kind``: the protocol of this package, or class, that it is of.

    Raises ValueError with what is wrong.
    """

    def wrong(problem: str) -> ValueError:
        like = f"{kind.__module__}.{kind.__name__}"
        return ValueError(
            f"expected the path of a class like {like} (docs/scheduling.md shows one), but {problem}"
        )

    try:
        make = pkgutil.resolve_name(path)
    except (Exception, SystemExit) as error:  # importing runs anybody's code
        raise wrong(f"it can't be imported: {error}") from error
    try:
        policy = make()
    except (Exception, SystemExit) as error:
        raise wrong(f"it can't be called without arguments: {error}") from error
    if not isinstance(policy, kind):
        raise wrong(f"it makes a {type(policy).__name__}, which is none")
    return policy
