"""Pipeline stages: a step is scheduled while the one before runs in the next stage, and samples come back late.

Random traffic without a model, as in ``test_random.py``; ``test_matrix.py`` has two real stages. With async
scheduling, which has stages on GPUs only, two steps are in flight behind each that is scheduled.
"""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.files import builtin_names, load
from tests.tiers import Tier

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("clock")]

#: How many runs of each kind.
NUM_SEEDS = {
    Tier.FIRST: {"anything": 1},
    Tier.CI: {"anything": 1, "pressure": 1},
    Tier.ALL: {"anything": 12, "pressure": 12, "resets": 12},
}
PREFILLED = [name for name in builtin_names() if not load(name).join.moves_kv]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("name", PREFILLED)
def test_in_two_stages_every_request_ends_once_as_undisturbed_and_everything_is_back(
    model_of, tier, name, mode
):
    from tests.engine.random_drive import compared

    for kind, num_seeds in NUM_SEEDS[tier].items():
        for seed in range(num_seeds):
            compared(name, kind, seed, model_of(name), in_stages=mode)
