"""What of a request waits to be prefilled, for the limits of the queue."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from vllm import SamplingParams

from forkjoin_scheduler.request.given import OPEN, Given, Part, Stretch
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.settings import COMPILED
from forkjoin_scheduler.vllm_seam.front_end import output
from forkjoin_scheduler.vllm_seam.front_end.output import ForkJoinOutputProcessor

GIVEN = Given([1, 2], {"": [Stretch([Part([7] * 5)], OPEN)]})


@pytest.mark.parametrize(
    ("options", "num"), [(None, 2), (CompiledOptions(return_tree=True), 2), (CompiledOptions(given=GIVEN), 7)]
)
def test_a_tree_that_a_request_goes_on_from_waits_with_its_prompt(monkeypatch, options, num):
    entered = []
    monkeypatch.setattr(output.BACKLOG, "enter", lambda *args: entered.append(args[2]) or 1 / 0)
    extra_args = None if options is None else {COMPILED: msgspec.to_builtins(options)}
    params = SamplingParams(extra_args=extra_args)
    request = SimpleNamespace(request_id="r", prompt_token_ids=[1, 2], sampling_params=params)
    processor = object.__new__(ForkJoinOutputProcessor)
    processor.request_states = {}
    with pytest.raises(ZeroDivisionError):
        processor.add_request(request)
    assert entered == [num]
