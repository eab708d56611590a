"""Which metrics and labels a query of Prometheus names. Enough of PromQL for the queries that we ship."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from prometheus_client import REGISTRY

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_MATCHERS = re.compile(r"\{[^}]*\}")
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w)(?!\s*\()")
_WORDS = {"and", "or", "unless", "bool", "offset"}
#: Prometheus' own.
ALWAYS = {"up"}


def metrics(query: str) -> set[str]:
    """The metrics that ``query`` names: ``sum(rate(a_total{b="c"}[5m]))`` -> ``{"a_total"}``."""
    bare = _RANGE.sub("", _GROUPING.sub("", _MATCHERS.sub("", _STRING.sub('""', query))))
    bare = re.sub(r"\b(sum|max|min|avg|count|topk)\b(?=\s)", "", bare)
    return {name for name in _NAME.findall(bare) if name not in _WORDS and not re.fullmatch(r"[eE]\d*", name)}


def labels(query: str) -> set[str]:
    """The labels that ``query`` matches or groups by."""
    bare = _STRING.sub('""', query)
    matched = {m for braces in _MATCHERS.findall(bare) for m in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", braces)}
    return matched | {
        label.strip() for _, group in _GROUPING.findall(bare) for label in group.split(",") if label.strip()
    }


def ours() -> set[str]:
    """Every series of fork/join, from the code that makes them."""
    import forkjoin_server.operate.metrics

    assert forkjoin_server.operate.metrics
    kinds = {m.name: m.type for m in REGISTRY.collect() if m.name.startswith("forkjoin:")}
    return {series for name, kind in kinds.items() for series in _series(name, kind)}


def vllms() -> set[str]:
    """Every series that the installed vLLM's code names: read, not run."""
    import importlib.util

    spec = importlib.util.find_spec("vllm.v1.metrics")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / "loggers.py").read_text())
    names = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            kind = call.func.attr.removeprefix("_").removesuffix("_cls")
            for keyword in call.keywords:
                value = keyword.value
                if (
                    keyword.arg == "name"
                    and isinstance(value, ast.Constant)
                    and str(value.value).startswith("vllm:")
                ):
                    names |= _series(value.value, kind)
    return names


def _series(name: str, kind: str) -> set[str]:
    if kind == "counter":
        return {f"{name}_total"}
    if kind == "histogram":
        return {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return {name}


#: Of prometheus-fastapi-instrumentator, which vLLM counts HTTP requests with.
HTTP = {"http_requests_total"}
