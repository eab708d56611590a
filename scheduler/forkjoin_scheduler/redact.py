"""Hides what looks like a secret, in what is printed and logged."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
#: The loggers of vLLM's that write down how it is configured (it hides two arguments itself), and
#: those of OpenTelemetry's that write down where to they can't export.
LOGGERS = (
    "vllm.entrypoints.serve.utils.api_utils",
    "vllm.entrypoints.common.startup",  # the same since 0.33
    "vllm.v1.engine.core",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)

#: Names of secrets. `max_tokens`, `tokenizer` and `ssl_keyfile` (a path) are none.
_NAMES = (
    r"(?:\w*[_\-.])?(?:api[_-]?keys?|access[_-]?keys?(?:[_-]?id)?|private[_-]?keys?|secrets?|token|"
    r"passw(?:or)?d|passphrase|credentials?|authorization|secret[_-]?access[_-]?key|hf[_-]?token)"
)
_SECRET_NAME = re.compile(rf"(?i){_NAMES}\Z")
#: `'name': 'value'`, `"name": ["value"]` and `name='value'`, as dicts, JSON and dataclasses are written.
_PAIR = re.compile(
    rf"""(?ix) (?P<before> \b{_NAMES}['"]? \s* [:=] \s*)
    (?P<value> '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | \[[^\]]*\] | [^\s,'"\[\]{{}}()]+ )"""
)
#: Values that are secrets whatever they are called: keys of well-known services, JWTs, bearer tokens.
_SECRET_VALUE = re.compile(
    r"\b(?:sk-[\w-]{8,}|hf_[A-Za-z0-9]{8,}|gh[pousr]_\w{8,}|AKIA[0-9A-Z]{12,}|eyJ[\w-]+\.[\w-]+\.[\w-]*)"
    r"|(?<=bearer )[^\s'\",]+",
    re.IGNORECASE,
)
#: In a URL, or in what gRPC leaves of one: `user:password@host`.
_URL_PASSWORD = re.compile(r"(?:(?<=://)|(?<![^\s'\"])[^\s/:@'\"]+:)[^\s/'\"]+(?=@)")


def shown(name: str, value: Any) -> str:
    """``value`` as it may be shown: hidden if it, or anything inside, looks like a secret."""
    if value is not None and _SECRET_NAME.match(name):
        return HIDDEN
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}: {shown(str(key), item)}" for key, item in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown('', item) for item in value)}]"
    return hide(str(value))


def hide(text: str) -> str:
    """``text`` without what looks like a secret in it."""
    text = _URL_PASSWORD.sub(HIDDEN, _SECRET_VALUE.sub(HIDDEN, text))
    return _PAIR.sub(lambda found: _without_value(found["before"], found["value"]), text)


def _without_value(before: str, value: str) -> str:
    return before + (value if value in ("None", "''", '""', "[]", "False", "True") else f"'{HIDDEN}'")


class HidesSecrets(logging.Filter):
    """Lets every record through, without its secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (hidden := hide(message)) != message:
            record.msg, record.args = hidden, ()
        return True


_HIDES_SECRETS = HidesSecrets()


def hide_in_logs() -> None:
    """Hide secrets in what this process logs of its configuration; once is as good as twice."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_HIDES_SECRETS)
