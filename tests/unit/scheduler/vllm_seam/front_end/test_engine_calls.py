"""What an engine core does with our call, as vLLM hands it over: without an engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


class Asked:
    """A scheduler that notes what it is asked."""

    def __init__(self):
        self.calls = []

    def cancel_thread(self, *call):
        self.calls.append(call)
        return "cancelling"


@pytest.fixture
def core():
    """vLLM's engine core with the plugin in it, and nothing that computes."""
    from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState

    from forkjoin_scheduler.vllm_seam.front_end.engine_calls import answer_front_ends

    answer_front_ends()
    core = EngineCoreProc.__new__(EngineCoreProc)
    core.scheduler, core.shutdown_state = Asked(), EngineShutdownState.RUNNING
    core.output_queue = SimpleNamespace(put_nowait=lambda output: core.answers.append(output))
    core.answers = []
    return core


def call(core, *args):
    """What the front end gets back."""
    from vllm.v1.engine import EngineCoreRequestType

    core._handle_client_request(EngineCoreRequestType.UTILITY, (3, 7, "cancel_thread", args))
    ((client, outputs),) = core.answers
    assert (client, outputs.utility_output.call_id) == (3, 7)
    assert outputs.utility_output.failure_message is None
    return outputs.utility_output.result.result


def test_the_scheduler_is_asked_and_its_answer_goes_back(core):
    assert call(core, "fj0", 2, "alice") == "cancelling"
    assert core.scheduler.calls == [("fj0", 2, "alice")]


def test_a_scheduler_that_never_forks_knows_no_thread(core):
    core.scheduler = SimpleNamespace()
    assert call(core, "fj0", 2, "") == "unknown"


def test_vllm_has_no_such_call_of_its_own():
    """Once it hands calls on to the scheduler, ours can go."""
    import inspect

    from vllm.v1.engine import core

    assert "cancel_thread" not in inspect.getsource(core)
