"""Recurrent states without a model: whatever happens, each request goes on from the state of its own tokens."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.files import builtin_names, load
from tests.tiers import Tier

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("clock")]

#: Of each dialect and kind.
NUM_SEEDS = {Tier.FIRST: 1, Tier.CI: 2, Tier.ALL: 10}
JOINED_BY_TEXT = [name for name in builtin_names() if not load(name).join.moves_kv]


@pytest.mark.parametrize("kind", ["pressure", "anything"])
@pytest.mark.parametrize("name", JOINED_BY_TEXT)
def test_whatever_happens_no_branch_goes_on_from_another_state_than_its_own(model_of, tier, name, kind):
    from tests.engine.recurrent_drive import compared

    for seed in range(NUM_SEEDS[tier]):
        compared(name, kind, seed, model_of(name))


def test_threads_start_on_copies_of_the_state_at_their_fork(model_of):
    from tests.engine.recurrent_drive import compared

    assert compared("threadweaver", "pressure", 0, model_of("threadweaver"))[1]


def test_the_drive_notices_a_state_that_is_taken_for_that_of_fewer_tokens(model_of, monkeypatch):
    from forkjoin_scheduler.vllm_seam.cache import kv
    from tests.engine.recurrent_drive import compared

    monkeypatch.setattr(kv, "is_recurrent", lambda manager: False)
    with pytest.raises(AssertionError, match="its state has seen other tokens"):
        compared("threadweaver", "pressure", 0, model_of("threadweaver"))
