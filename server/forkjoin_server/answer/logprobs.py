"""Log-probabilities of injected tokens, told apart from those that the model sampled.

Chat completions and responses have an entry for each token, which says ``"injected": true``; completions
have lists, beside which stands a list ``injected``. Such a token has logprob 0.0 and no alternatives.
"""

from __future__ import annotations

from typing import Any

from forkjoin_scheduler.publish.injected import INJECTED_LOGPROB
from forkjoin_server.asgi import Json

#: The mark as it stands in JSON.
_MARK = repr(INJECTED_LOGPROB).encode()


def has_injected(data: bytes) -> bool:
    """Whether the JSON ``data`` may hold a log-probability of an injected token."""
    return _MARK in data


def marked(value: Any) -> Any:
    """``value``, of a response, in which each injected token's log-probability is said to be one."""
    if isinstance(value, list):
        return [marked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("logprob") == INJECTED_LOGPROB:
        return value | {"logprob": 0.0, "top_logprobs": [], "injected": True}
    if INJECTED_LOGPROB in (value.get("token_logprobs") or ()):
        return _marked_lists(value)
    return {name: marked(item) for name, item in value.items()}


def _marked_lists(logprobs: Json) -> Json:
    injected = [value == INJECTED_LOGPROB for value in logprobs["token_logprobs"]]
    values = [0.0 if i else v for i, v in zip(injected, logprobs["token_logprobs"], strict=True)]
    more = {"token_logprobs": values, "injected": injected}
    if top := logprobs.get("top_logprobs"):
        more["top_logprobs"] = [{} if i else t for i, t in zip(injected, top, strict=True)]
    return logprobs | more
