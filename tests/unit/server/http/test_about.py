"""What ``GET /v1/forkjoin`` says."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server.http import about as about_route
from forkjoin_server.http.about import about
from forkjoin_server.http.middleware import ForkJoinMiddleware
from forkjoin_server.http.route_fields import ForkJoinAbout
from forkjoin_server.start.configuration import EMBEDDED_MODEL


def test_it_names_the_model_the_dialect_and_the_limits_in_force():
    config = SimpleNamespace(model=str(EMBEDDED_MODEL), max_model_len=4096)
    settings = Settings.of(load("threadweaver"), {"max_forks": 3})
    seen = about(config, settings)
    assert (seen["is_embedded_model"], seen["max_model_len"]) == (True, 4096)
    assert (seen["dialect"]["name"], seen["dialect"]["trigger"]) == ("threadweaver", "</Outlines>")
    assert seen["limits"]["max_forks"] == 3


@pytest.mark.parametrize("name", builtin_names())
def test_of_each_dialect_it_says_whether_a_parent_waits_and_how_deep_threads_nest(name):
    dialect = load(name)
    seen = about(None, Settings.of(dialect, {}))["dialect"]
    assert (seen["parent_waits"], seen["max_depth"]) == (dialect.join.waits, dialect.max_depth)
    # A trigger that is a regex is not what the model writes.
    assert seen["trigger"] == (dialect.trigger if dialect.tags_are == "tokens" else None)


@pytest.mark.parametrize("settings", [Settings.of(load("npr"), {}), Settings()], ids=["on", "off"])
def test_it_says_what_the_schema_says_that_it_says(settings):
    ForkJoinAbout.model_validate(about(None, settings))


def test_without_a_dialect_it_says_so():
    assert about(None, Settings())["dialect"] is None


def test_the_route_reads_the_dialect_and_the_version_once(monkeypatch):
    reads, read, version = [], Settings.model_validate, about_route.version
    monkeypatch.setattr(Settings, "model_validate", lambda given: reads.append("dialect") or read(given))
    monkeypatch.setattr(about_route, "version", lambda name: reads.append("version") or version(name))
    settings = Settings.of(load("threadweaver"), {}).model_dump(mode="json")
    state = SimpleNamespace(vllm_config=SimpleNamespace(additional_config={KEY: settings}))
    scope = {"type": "http", "method": "GET", "path": about_route.PATH, "headers": []}
    scope["app"] = SimpleNamespace(state=state)
    sent = []

    async def send(message):
        sent.append(message)

    async def ask_twice():
        app = ForkJoinMiddleware(None)
        for _ in range(2):
            await app(scope, None, send)

    asyncio.run(ask_twice())
    bodies = [json.loads(message["body"]) for message in sent[1::2]]
    assert [body["dialect"]["name"] for body in bodies] == ["threadweaver"] * 2
    assert reads == ["dialect", "version"]
