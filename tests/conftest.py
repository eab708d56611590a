from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.tiers import Tier, tier_of

pytest_plugins = ["tests.costs"]

# Each engine computes on one core, whichever is free. By default vLLM binds all engines of a machine to the
# same cores: two that run side by side would share one.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example's time says more of the machine's other work than of ours.
settings.register_profile("forkjoin", deadline=None)
settings.load_profile("forkjoin")

#: Tests so marked start processes that take long; they come first, so that no worker is left with one at the end.
LONG = ("server", "engine")


def pytest_addoption(parser: pytest.Parser) -> None:
    names = [tier.name.lower() for tier in Tier]
    parser.addoption("--tier", choices=names, default="all", help="run the tests of a tier (tests/tiers.py)")
    parser.addoption("--costs", action="store_true", help="say at the end what each file cost in CPU seconds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = Tier[config.getoption("tier").upper()]
    later = [item for item in items if tier_of(item.nodeid) > chosen]
    if later:
        config.hook.pytest_deselected(items=later)
    items[:] = sorted((item for item in items if tier_of(item.nodeid) <= chosen), key=_order)


def _order(item: pytest.Item) -> int:
    return next((i for i, mark in enumerate(LONG) if item.get_closest_marker(mark)), len(LONG))


@pytest.fixture(scope="session")
def tier(request: pytest.FixtureRequest) -> Tier:
    """The tier that runs: random tests try as many seeds as there is time for."""
    return Tier[request.config.getoption("tier").upper()]
