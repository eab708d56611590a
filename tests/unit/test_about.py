"""What ``GET /v1/forkjoin`` says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from forkjoin_scheduler.dialect_files import builtin_names, load
from forkjoin_scheduler.settings import Settings
from forkjoin_server.about import about
from forkjoin_server.configuration import EMBEDDED_MODEL


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


def test_without_a_dialect_it_says_so():
    assert about(None, Settings())["dialect"] is None
