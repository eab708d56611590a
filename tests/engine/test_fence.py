"""An error anywhere in fork/join code ends one family, and hurts no other."""

from __future__ import annotations

import random
from itertools import count
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.dialect_files import builtin_names
from tests.engine import renamed

pytestmark = pytest.mark.engine

#: Seeds of a dialect's runs, in each of which another part of the targets raises.
SEEDS = (0, 1)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Let each look at the clock take a millisecond: a run is the same on every machine."""
    from forkjoin_scheduler.vllm_seam import pacing

    ticks = count()
    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 1e3))


@pytest.fixture
def errors(monkeypatch):
    """The errors that are logged, with a traceback each."""
    from forkjoin_scheduler.vllm_seam import fence

    logged = []
    # not by a handler: each new engine configures all loggers anew
    monkeypatch.setattr(fence.logger, "error", lambda *_, exc_info, **__: logged.append(exc_info))
    return logged


#: The hooks that some test has raised in, for the last one to look at.
_RAISED_IN: set[str] = set()


@pytest.mark.parametrize("name", builtin_names())
def test_an_error_in_any_function_that_a_hook_comes_to_ends_one_family_at_most(
    name, tmp_path_factory, errors
):
    from tests.engine import faults
    from tests.engine.random_drive import Drive

    model = renamed.model_for(name, tmp_path_factory.mktemp)
    num_ended = 0
    for seed in SEEDS:
        run = name, "faults", seed, model
        calm = Drive.calm(*run)
        calm.run()
        with faults.counted() as calls:
            Drive.named(*run).run()
        chance = random.Random(f"{name} {seed}")
        for target, number in sorted(((t, n) for t, n in calls.items() if n), key=str):
            nth, is_behind = chance.randint(1, number), chance.random() < 0.5
            what = f"{target[1]}, call {nth} of {number}, {'behind' if is_behind else 'before'} it"
            errors.clear()
            drive = Drive.named(*run)
            try:
                with faults.raising(target, nth, is_behind=is_behind) as hooks:
                    drive.run()
                assert hooks, "it was not called by a hook"
                assert len(errors) == 1, "one traceback"
                assert len(drive.seen.failed) == 1, "one error is counted"
                drive.check_same(calm)
            except Exception as error:
                error.add_note(f'{what}; Drive.named("{name}", "faults", {seed}, …), {drive.setup}')
                raise
            _RAISED_IN.update(hooks)
            num_ended += any(drive.seen.failed)
    assert num_ended > len(SEEDS) * 5


def test_every_hook_was_raised_in():
    from tests.engine.faults import HOOKS

    assert len(HOOKS) >= 10
    assert not HOOKS - _RAISED_IN
