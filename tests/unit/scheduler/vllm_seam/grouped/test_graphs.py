"""Which graph runs a step: vLLM's manager with its own candidates, and a runner's and a model state's part in it."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace as Facts
from typing import Any

import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, ModelCudaGraphManager
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from forkjoin_scheduler.tensors.two_passes import StepGroups
from forkjoin_scheduler.vllm_seam.grouped import graphs
from forkjoin_scheduler.vllm_seam.grouped.graphs import GroupedDescriptor, make_capturing
from forkjoin_scheduler.vllm_seam.grouped.handing import Report, attach_groups
from forkjoin_scheduler.vllm_seam.grouped.model_state import GroupingModelState
from forkjoin_scheduler.vllm_seam.grouped.runner import GroupsRows
from forkjoin_scheduler.vllm_seam.grouped.step import Step
from tests.engine.recorded_graph import RecordedGraph, capture_into

GROUPS = StepGroups(0, (2,), (16,))
DRAFTED = StepGroups(0, (2,), (16,), num_queries=4)


def _manager(mode: str = "FULL_AND_PIECEWISE", **more: Any) -> ModelCudaGraphManager:
    manager = ModelCudaGraphManager.__new__(ModelCudaGraphManager)
    config = Facts(
        speculative_config=None,
        cache_config=Facts(use_kda_recoverssm=False),
        parallel_config=Facts(data_parallel_size=1),
    )
    vars(manager).update(
        vllm_config=config, max_num_reqs=8, cudagraph_mode=CUDAGraphMode[mode], decode_query_len=1,
        compilation_config=Facts(cudagraph_capture_sizes=[1, 2, 4, 8, 16], max_cudagraph_capture_size=16),
        varlen_decode=False, ubatch_runner=None, lora_capture_cases=[0], graphs={}, pool=None, device="cpu",
        _graphs_captured=False, _max_full_descs_to_capture=None, _capture_mem_samples=None, _candidates={},
        _capture_descs={}, use_breakable_cg=False, _lora_dispatch_map={}, _max_lora_case=0,
    )  # fmt: skip
    vars(manager).update(more)
    manager._init_candidates()
    return manager


def _capture(manager: Any, monkeypatch: Any) -> list[tuple[str, int, bool]]:
    """What vLLM's loop over descriptors has prepared: mode, tokens, whether attention was to be in two passes."""
    prepared = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture_into)
    monkeypatch.setattr(graphs, "_free_bytes", lambda: 0)
    monkeypatch.setattr(cudagraph_utils, "current_stream", lambda: None)
    monkeypatch.setattr(cudagraph_utils, "is_global_first_rank", lambda: False)
    for name in ("graph_capture", "capture_pool"):
        monkeypatch.setattr(cudagraph_utils, name, lambda *_, **__: contextlib.nullcontext())

    def create(desc: Any, warmup: bool) -> Any:
        prepared.append((desc.cg_mode.name, desc.num_tokens, manager.step.is_captured))
        return lambda mode: None

    super(ModelCudaGraphManager, manager).capture(create)
    return prepared


def _grouping(monkeypatch: Any, **more: Any) -> Any:
    manager = _manager(**more)
    assert make_capturing(manager, Step())
    _capture(manager, monkeypatch)
    return manager


def test_each_graph_of_a_decoding_step_is_captured_a_second_time_with_two_passes(monkeypatch):
    manager = _manager()
    own = {mode: list(descs) for mode, descs in manager._capture_descs.items()}
    assert make_capturing(manager, Step())
    prepared = _capture(manager, monkeypatch)
    full = [(num, is_twin) for mode, num, is_twin in prepared[::2] if mode == "FULL"]
    assert [num for num, is_twin in full if is_twin] == [8, 4, 2]
    assert [num for num, is_twin in full if not is_twin] == [8, 4, 2, 1]
    assert full.index((8, True)) == 4, "twins come after all of vLLM's"
    assert not any(is_twin for mode, _, is_twin in prepared if mode == "PIECEWISE")
    assert manager.graphs.keys() == {*own[CUDAGraphMode.FULL], *manager._capture_descs[CUDAGraphMode.FULL]}
    assert not manager.step.is_captured


def test_with_drafts_the_graphs_of_rows_with_all_of_them_have_twins(monkeypatch):
    manager = _grouping(monkeypatch, decode_query_len=4, max_num_reqs=4)
    twins = [desc for desc in manager.graphs if isinstance(desc, GroupedDescriptor)]
    assert {(desc.num_tokens, desc.num_reqs, desc.uniform_token_count) for desc in twins} == {
        (8, 2, 4),
        (16, 4, 4),
    }
    manager.step.wants_graph = True
    assert manager.dispatch(3, 12, 4, 0) in twins
    assert manager.dispatch(3, 3, None, 0).cg_mode == CUDAGraphMode.PIECEWISE


def test_nothing_is_captured_twice_where_there_are_no_graphs_of_whole_steps():
    for manager in (_manager("PIECEWISE"), _manager("NONE"), object()):
        before = type(manager)
        assert not make_capturing(manager, Step())
        assert type(manager) is before


def test_a_descriptor_with_two_passes_equals_none_of_vllms():
    desc = BatchExecutionDescriptor(CUDAGraphMode.FULL, 8, 8, uniform_token_count=1)
    twin = GroupedDescriptor.twin_of(desc)
    assert twin != desc
    assert len({desc, twin}) == 2
    assert twin == GroupedDescriptor.twin_of(desc)
    assert (twin.num_tokens, twin.num_reqs, twin.cg_mode) == (8, 8, CUDAGraphMode.FULL)


@pytest.mark.parametrize("num_rows", range(1, 9))
def test_steps_with_groups_run_the_twin_and_others_vllms_graph(monkeypatch, num_rows):
    manager, plain = _grouping(monkeypatch), _manager()
    plain._graphs_captured = True
    expected = plain.dispatch(num_rows, num_rows, 1, 0)
    assert expected.cg_mode == CUDAGraphMode.FULL
    assert manager.dispatch(num_rows, num_rows, 1, 0) == expected
    manager.step.wants_graph = True
    found = manager.dispatch(num_rows, num_rows, 1, 0)
    assert found == (GroupedDescriptor.twin_of(expected) if num_rows > 1 else expected)


def test_prompts_many_rows_and_adapters_run_what_vllm_chooses(monkeypatch):
    manager, plain = _grouping(monkeypatch), _manager()
    plain._graphs_captured = manager.step.wants_graph = True
    for asked in ((2, 7, None, 0), (9, 9, 1, 0), (2, 2, None, 0), (40, 40, 1, 0), (4, 4, 1, 2)):
        found = manager.dispatch(*asked)
        assert found == plain.dispatch(*asked)
        assert found.cg_mode != CUDAGraphMode.FULL


def test_a_graph_that_was_not_captured_is_not_chosen(monkeypatch):
    manager = _grouping(monkeypatch)
    manager.step.wants_graph = True
    manager.graphs.clear()
    assert type(manager.dispatch(4, 4, 1, 0)) is BatchExecutionDescriptor


class _Runner:
    """Has of vLLM's runner what is overridden: whether rows have one token each."""

    num_alike: int | None = 1

    def update_requests(self, scheduler_output: Any) -> None: ...

    def gather_batch_req_state(self, scheduler_output: Any, dummy_run: bool) -> Any:
        return "state", self.num_alike

    def prepare_inputs(self, *args: Any) -> Any:
        return args


class _Grouping(GroupsRows, _Runner):
    pass


def _runner(*, is_whole: bool, num_alike: int | None = 1, groups: StepGroups | None = GROUPS) -> Any:
    runner = _Grouping()
    runner._can, runner._step, runner.num_alike = Report(0, 4096, is_whole=is_whole), Step(), num_alike
    output: Any = Facts(num_scheduled_tokens={"a": 1, "b": 1, "c": 1})
    if groups is not None:
        attach_groups(output, groups)
    runner.update_requests(output)
    return runner


@pytest.mark.parametrize(
    ("is_whole", "num_alike", "groups", "told", "wants"),
    [
        (True, 1, GROUPS, 1, True),
        (True, None, GROUPS, None, False),
        (True, 2, GROUPS, None, False),
        (True, 4, DRAFTED, 4, True),
        (True, 1, DRAFTED, None, False),
        (True, 1, None, 1, False),
        (False, 1, GROUPS, None, False),
        (False, 1, None, 1, False),
    ],
)
def test_a_step_with_groups_runs_in_pieces_unless_it_only_decodes(is_whole, num_alike, groups, told, wants):
    runner = _runner(is_whole=is_whole, num_alike=num_alike, groups=groups)
    assert runner.gather_batch_req_state(None, False) == ("state", told)
    assert runner._step.wants_graph is wants


def test_a_dummy_step_runs_vllms_graph_whatever_the_last_step_was():
    runner = _runner(is_whole=True)
    runner.gather_batch_req_state(None, False)
    runner.prepare_inputs(None, None, GroupedDescriptor(CUDAGraphMode.FULL, 4, 4, 1), 0)
    assert runner._step.is_replayed
    assert runner.gather_batch_req_state(None, True) == ("state", 1)
    assert not runner._step.wants_graph
    assert not runner._step.is_replayed


def _prepared(monkeypatch: Any, step: Step, ids: list[str], mode: CUDAGraphMode) -> Any:
    """What builders are given for a batch."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(DefaultModelState, "prepare_attn", lambda *_, **more: given.update(more))
    state = GroupingModelState.__new__(GroupingModelState)
    state.step = step
    state.prepare_attn(Facts(req_ids=ids), mode)
    found = given.get("model_specific_attn_metadata")
    return None if found is None else found._more


def test_a_graph_with_two_passes_always_has_its_buffers_written(monkeypatch):
    """Those of a batch that is not the groups' own say that it has none: else they were the last step's."""
    full = CUDAGraphMode.FULL
    step = Step(groups=GROUPS, ids=("a", "b"), is_replayed=True)
    assert _prepared(monkeypatch, step, ["a", "b", "c"], full) == {"groups": GROUPS, "for_graph": True}
    assert step.was_grouped
    assert _prepared(monkeypatch, step, ["b", "a", "c"], full) == {"groups": None, "for_graph": True}
    assert not step.was_grouped


def test_a_graph_of_vllms_has_no_groups_and_one_in_pieces_has(monkeypatch):
    step = Step(groups=GROUPS, ids=("a", "b"))
    assert _prepared(monkeypatch, step, ["a", "b"], CUDAGraphMode.FULL) is None
    found = _prepared(monkeypatch, step, ["a", "b"], CUDAGraphMode.PIECEWISE)
    assert found == {"groups": GROUPS, "for_graph": False}


def test_groups_that_no_padding_holds_are_refused():
    assert StepGroups(0, (2, 3), (16, 32)).padded(8) == StepGroups(0, (2, 3, 3, 0, 0), (16, 32, 0, 0, 0))
    assert StepGroups.none().padded(1) == StepGroups(0, (1,), (0,))
    assert StepGroups(0, (2, 2), (16, 32)).padded(4).num_rows == (2, 2, 0)
    with pytest.raises(ValueError, match="two rows or more"):
        StepGroups(0, (1, 1, 1), (16, 16, 16)).padded(4)
    with pytest.raises(ValueError, match="two rows or more"):
        StepGroups(0, (5,), (16,)).padded(4)
