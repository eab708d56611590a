"""What an engine core does with our call, as vLLM hands it over: without an engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from forkjoin_scheduler.errors import UnsupportedEngine
from forkjoin_scheduler.publish.weights import Weights


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


def call(core, *args, name="cancel_thread"):
    """What the front end gets back."""
    from vllm.v1.engine import EngineCoreRequestType

    core._handle_client_request(EngineCoreRequestType.UTILITY, (3, 7, name, args))
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


class Noting:
    """In the place of ``NewWeights``: notes that weights were taken, and in which order."""

    def __init__(self, done):
        self.weights, self.done = Weights(), done
        self.refusal = self.error = None

    def check(self):
        if self.refusal is not None:
            raise self.refusal

    def take(self):
        self.done.append("take")
        if self.error is not None:
            raise self.error


@pytest.fixture
def loading(core):
    """The same core, whose workers load weights. ``done``: what they and others were asked."""
    core.done = done = []
    core.scheduler = SimpleNamespace(
        new_weights=Noting(done), reset_encoder_cache=lambda: done.append("scheduler's encoder cache"),
        has_unfinished_requests=lambda: False,
    )  # fmt: skip
    core.model_executor = SimpleNamespace(
        collective_rpc=lambda method, *_: done.append(method) or ["told"],
        reset_encoder_cache=lambda: done.append("workers' encoder cache"),
    )
    core.vllm_config = SimpleNamespace(model_config=SimpleNamespace(is_multimodal_model=False))
    core._weight_version = "default"
    return core


@pytest.mark.parametrize("load", ["finish_weight_update", "reload_weights"])
def test_a_load_is_taken_once_and_the_name_that_comes_then_is_its(loading, load):
    assert loading.collective_rpc(load) == ["told"]
    assert loading.get_weight_version() == loading.scheduler.new_weights.weights.version == "default+1"
    loading.set_weight_version("a")
    assert loading.get_weight_version() == loading.scheduler.new_weights.weights.version == "a"
    assert loading.done == [load, "take"]


def test_front_ends_call_both_with_all_of_vllms_arguments(loading):
    """vLLM asserts that a method has a parameter for each: with fewer no route of vLLM's for trainers works."""
    assert call(loading, "reload_weights", None, (), {}, name="collective_rpc") == ["told"]
    loading.answers.clear()
    assert call(loading, "a", name="set_weight_version") is None
    assert loading.get_weight_version() == "a"


def test_a_name_tells_of_weights_that_were_loaded_by_another_call(loading):
    loading.collective_rpc("load_mine")
    loading.collective_rpc(print)
    assert loading.done == ["load_mine", print]
    loading.set_weight_version("a")
    loading.set_weight_version("a")
    assert loading.done[2:] == ["take"]


def test_images_are_encoded_again_whatever_else_fails(loading):
    loading.vllm_config.model_config.is_multimodal_model = True
    loading.scheduler.new_weights.error = RuntimeError("kept")
    with pytest.raises(RuntimeError, match="kept"):
        loading.collective_rpc("reload_weights")
    assert loading.done == ["reload_weights", "take", "scheduler's encoder cache", "workers' encoder cache"]
    assert loading.get_weight_version() == "default+1", "they are others all the same"


def test_what_may_not_change_is_neither_loaded_nor_named(loading):
    loading.scheduler.new_weights.refusal = UnsupportedEngine("files")
    with pytest.raises(UnsupportedEngine, match="files"):
        loading.collective_rpc("reload_weights")
    with pytest.raises(UnsupportedEngine, match="files"):
        loading.set_weight_version("a")
    loading.set_weight_version("default")
    assert loading.done == []
    assert loading.get_weight_version() == "default"


def test_vllms_own_scheduler_hears_of_no_weights(loading):
    loading.scheduler = SimpleNamespace()
    loading.collective_rpc("reload_weights")
    loading.set_weight_version("a")
    assert (loading.done, loading.get_weight_version()) == (["reload_weights"], "a")


def test_vllm_has_no_such_call_of_its_own():
    """Once it hands calls on to the scheduler, ours can go."""
    import inspect

    from vllm.v1.engine import core

    assert "cancel_thread" not in inspect.getsource(core)
