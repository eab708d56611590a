"""Random traffic on the scheduler: every request ends once, nothing hangs, everything is back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from forkjoin_scheduler.dialects.files import builtin_names
from tests.tiers import Tier

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("clock")]

#: Of each dialect and kind.
NUM_SEEDS = {Tier.FIRST: 15, Tier.CI: 25, Tier.ALL: 35}


@pytest.mark.parametrize("kind", ["mixed", "pressure", "resets", "anything"])
@pytest.mark.parametrize("name", builtin_names())
def test_whatever_happens_every_request_ends_once_as_undisturbed_and_everything_is_back(
    model_of, tier, name, kind
):
    from tests.engine.random_drive import compared

    for seed in range(NUM_SEEDS[tier]):
        compared(name, kind, seed, model_of(name))


def test_the_drive_notices_logprobs_that_are_handed_to_another_token(model_of, monkeypatch):
    from forkjoin_scheduler.vllm_seam import live
    from tests.engine.random_drive import Drive

    to_outputs = live.to_outputs

    def handed_on(parent, pieces, *end, **how):
        rows = [piece.logprobs for piece in pieces]
        handed = [replace(p, logprobs=r) for p, r in zip(pieces, rows[::-1], strict=True)]
        return to_outputs(parent, handed, *end, **how)

    monkeypatch.setattr(live, "to_outputs", handed_on)
    drive = Drive.named("threadweaver", "pressure", 0, model_of("threadweaver"))
    with pytest.raises(AssertionError, match="rows of logprobs of other tokens"):
        drive.run()
