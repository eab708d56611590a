"""The five rules of the seam to vLLM."""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import re
from pathlib import Path

import pytest

from forkjoin_scheduler.errors import UnsupportedEngine

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("scheduler/**/*.py"), *ROOT.glob("server/**/*.py")])
SEAM = {"scheduler/forkjoin_scheduler/vllm_seam", "server/forkjoin_server/vllm_seam.py"}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_seam_imports_vllm_and_torch(path):
    name = str(path.relative_to(ROOT))
    if not any(name.startswith(seam) for seam in SEAM):
        assert not _imports(path) & {"vllm", "torch"}


def test_only_kv_py_touches_the_kv_cache_managers_insides():
    touching = {
        p.name for p in SOURCES if "single_type_managers" in p.read_text() or "block_pool" in p.read_text()
    }
    assert touching == {"kv.py"}


def test_the_scheduler_extends_async_scheduler_and_calls_super():
    path = ROOT / "scheduler/forkjoin_scheduler/vllm_seam/scheduler.py"
    cls = next(n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef) and n.bases)
    assert [ast.unparse(b) for b in cls.bases] == ["AsyncScheduler"]
    schedule = next(n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "schedule")
    assert "super().schedule(" in ast.unparse(schedule)
    assert len(ast.unparse(schedule).splitlines()) < 10


@pytest.mark.parametrize(
    "name",
    ["_update_request_with_output", "_get_local_prefix_cache_hit", "_free_request_blocks",
     "_enqueue_waiting_request"],
)  # fmt: skip
def test_the_private_members_that_we_build_on_exist(name):
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    assert callable(getattr(AsyncScheduler, name))


def test_the_scheduler_is_an_async_scheduler_so_async_scheduling_stays_on():
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler

    assert issubclass(ForkJoinScheduler, AsyncScheduler)


def _methods(path: Path) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_copies_schedule(path):
    copies = [m for m in _methods(path) if m.name == "schedule" and "super().schedule(" not in ast.unparse(m)]
    assert copies == []


def test_each_override_of_a_method_of_vllms_scheduler_calls_it():
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    path = ROOT / "scheduler/forkjoin_scheduler/vllm_seam/scheduler.py"
    overrides = [m for m in _methods(path) if hasattr(AsyncScheduler, m.name)]
    assert len(overrides) >= 7
    assert [m.name for m in overrides if f"super().{m.name}(" not in ast.unparse(m)] == []


def test_our_overrides_take_the_parameters_of_vllms_methods():
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler

    for name, ours in vars(ForkJoinScheduler).items():
        theirs = getattr(AsyncScheduler, name, None)
        if callable(theirs) and name != "__init__" and not name.startswith("__"):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), (
                name
            )


#: Attributes that vLLM's constructors set, which the seam reads or writes: class -> names.
ATTRIBUTES = {
    "vllm.v1.core.sched.scheduler:Scheduler": (
        "running waiting kv_holding_waiting deferred_waiting _inflight_prefills reset_preempted_req_ids "
        "num_waiting_for_streaming_input max_num_active_reqs kv_cache_manager requests max_model_len "
        "vllm_config"
    ),
    "vllm.v1.core.kv_cache_manager:KVCacheManager": "coordinator block_pool",
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator": "single_type_managers",
    "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager": (
        "block_size req_to_blocks num_cached_block"
    ),
    "vllm.v1.request:Request": (
        "all_token_ids _all_token_ids _output_token_ids _block_hasher prompt_token_ids num_prompt_tokens max_tokens "
        "num_computed_tokens spec_token_ids drop_stale_output num_stale_output_tokens "
        "num_in_flight_tokens num_output_placeholders client_index arrival_time lora_request cache_salt "
        "priority trace_headers resumable prompt_embeds mm_features"
    ),
    "vllm.v1.engine.output_processor:OutputProcessor": "request_states tokenizer",
    "vllm.v1.engine.output_processor:RequestState": "parent_req external_req_id",
    "vllm.v1.engine.parallel_sampling:ParentRequest": "external_req_id",
}


@pytest.mark.parametrize("target", ATTRIBUTES)
def test_the_attributes_that_we_build_on_are_set_by_vllms_constructors(target):
    module, _, name = target.partition(":")
    source = inspect.getsource(getattr(importlib.import_module(module), name))
    missing = [a for a in ATTRIBUTES[target].split() if not re.search(rf"\b{a}\b\s*[:=,]", source)]
    assert missing == []


#: Methods and names of vLLM that the seam calls: module -> dotted names.
CALLED = {
    "vllm.v1.core.kv_cache_manager": (
        "KVCacheManager.get_blocks KVCacheManager.create_kv_cache_blocks KVCacheManager.free"
    ),
    "vllm.v1.core.block_pool": "BlockPool.free_blocks",
    "vllm.v1.core.single_type_kv_cache_manager": "SingleTypeKVCacheManager.pop_blocks_for_free",
    "vllm.v1.core.sched.request_queue": "RequestQueue.remove_requests RequestQueue.add_request",
    "vllm.v1.request": (
        "Request.update_block_hashes Request.is_finished Request.get_finished_reason "
        "Request.use_structured_output RequestStatus.WAITING_FOR_STREAMING_REQ "
        "RequestStatus.FINISHED_LENGTH_CAPPED"
    ),
    "vllm.v1.outputs": "LogprobsLists.slice_request",
    "vllm.v1.engine.async_llm": "OutputProcessor",
    "vllm.tokenizers.registry": "cached_tokenizer_from_config",
    "vllm.entrypoints.cli.serve": (
        "ServeSubcommand.subparser_init ServeSubcommand.validate ServeSubcommand.cmd"
    ),
    "vllm.entrypoints.serve.utils.api_utils": "cli_env_setup",
    "vllm.utils.argparse_utils": "FlexibleArgumentParser",
}


@pytest.mark.parametrize("module", CALLED)
def test_the_members_that_we_call_exist(module):
    loaded = importlib.import_module(module)
    for name in CALLED[module].split():
        assert operator.attrgetter(name)(loaded) is not None


def test_thread_events_ride_on_fields_that_vllms_output_has():
    from forkjoin_scheduler.vllm_seam import wire

    events = [{"type": "joined", "prefilled_tokens": 3}]
    assert wire.unpack(wire.pack("r", events)) == ("r", events)
    assert wire.unpack(type(wire.pack("r", []))(request_id="r", new_token_ids=[1])) is None


def test_another_minor_version_of_vllm_is_refused_saying_what_to_install(monkeypatch):
    from forkjoin_scheduler.vllm_seam import compat

    compat.check_version()
    monkeypatch.setattr(compat.vllm, "__version__", "0.33.0")
    with pytest.raises(UnsupportedEngine, match=r"0\.32.*0\.33\.0.*install"):
        compat.check_version()
