"""The five rules of the seam to vLLM."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from forkjoin_scheduler.errors import UnsupportedEngine
from forkjoin_scheduler.publish.events import Joined

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("scheduler/**/*.py"), *ROOT.glob("server/**/*.py")])
OTHERS = sorted([*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("docgen/**/*.py")])
SEAM = {
    "benchmarks/forkjoin_bench/vllm_seam/",
    "docgen/vllm_seam/",
    "scheduler/forkjoin_scheduler/vllm_seam/",
    "server/forkjoin_server/vllm_seam/",
}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


#: What moves tensors, and what verifies it, with torch and without vLLM.
TENSORS = ("scheduler/forkjoin_scheduler/tensors/", "scheduler/forkjoin_scheduler/verify/")


@pytest.mark.parametrize("path", [*SOURCES, *OTHERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_seam_imports_vllm_and_torch(path):
    name = str(path.relative_to(ROOT))
    if not name.startswith(tuple(SEAM)):
        assert not _imports(path) & ({"vllm"} if name.startswith(TENSORS) else {"vllm", "torch"})


@pytest.mark.parametrize("room", ["policy", "machine", "joins", "families"])
def test_what_decides_imports_neither_vllm_nor_torch_nor_a_seam(room):
    """In a process of its own, for here both may have been imported already."""
    modules = sorted(p.stem for p in ROOT.glob(f"scheduler/forkjoin_scheduler/{room}/*.py"))
    script = "".join(f"import forkjoin_scheduler.{room}.{m}\n" for m in modules if m != "__init__")
    script += "import sys; print(sorted(m for m in sys.modules if {'vllm', 'torch', 'vllm_seam'} & {*m.split('.')}))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(modules) > 8
    assert found.stdout.strip() == "[]"


# ---- machines --------------------------------------------------------------------------------

MACHINE = ROOT / "scheduler/forkjoin_scheduler/machine"
SEAM_OF_ENGINE = ROOT / "scheduler/forkjoin_scheduler/vllm_seam"
PERFORMING = SEAM_OF_ENGINE / "threads/performing.py"


def test_every_effect_is_performed_in_one_place_by_a_method_of_its_own():
    from forkjoin_scheduler.machine.effects import Effect
    from forkjoin_scheduler.vllm_seam.threads.performing import _PERFORMED_BY

    assert set(_PERFORMED_BY) == set(get_args(Effect))
    assert len(set(_PERFORMED_BY.values())) == len(_PERFORMED_BY)


def test_nobody_else_of_the_engine_asks_which_effect_it_has():
    """Parts that are handed one say so in what they take, and nowhere else."""
    from forkjoin_scheduler.machine.effects import Effect

    names = {f"effects.{effect.__name__}" for effect in get_args(Effect)}
    for path in SEAM_OF_ENGINE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if path == PERFORMING:
            continue
        said = [n.annotation for n in ast.walk(tree) if isinstance(n, ast.arg | ast.AnnAssign)]
        parts = (part for annotation in said if annotation for part in ast.walk(annotation))
        taken = [ast.unparse(part) for part in parts if isinstance(part, ast.Attribute)]
        named = [unparsed for a in _attributes(path) if (unparsed := ast.unparse(a)) in names]
        assert sorted(named) == sorted(name for name in taken if name in names), path.name
        imported = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert not any((n.module or "").endswith("machine.effects") for n in imported), path.name


def test_no_part_of_a_machine_drops_what_another_wants_done():
    """Of a generator that is called and not gone through nothing is done, and nothing is said."""
    trees = {path: ast.parse(path.read_text()) for path in MACHINE.glob("*.py")}
    wanting = {
        name
        for path, tree in trees.items()
        for method in _methods(tree)
        if method.returns is not None and re.search(r"\b(Effects|Forget)\b", ast.unparse(method.returns))
        for name in (method.name, f"{path.stem}.{method.name}")
    }
    num_calls = 0
    for path, tree in trees.items():
        handed_on = [
            n.value
            for n in ast.walk(tree)
            if isinstance(n, ast.YieldFrom | ast.Yield | ast.Return) and n.value
        ]
        handed_on += [part for n in handed_on if isinstance(n, ast.IfExp) for part in (n.body, n.orelse)]
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in wanting:
                num_calls += 1
                assert call in handed_on, (
                    f"{path.name}:{call.lineno}: expected yield from {ast.unparse(call)}"
                )
    assert num_calls > 30


def test_policies_import_nothing_but_each_other_and_errors():
    """So what is a policy can be read, tested and replaced by itself."""
    for path in ROOT.glob("scheduler/forkjoin_scheduler/policy/*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        own = {n.module for n in nodes if n.module and n.module.startswith("forkjoin_")}
        others = {m for m in own if not m.startswith("forkjoin_scheduler.policy.")}
        assert others <= {"forkjoin_scheduler.errors"}, path.name
        assert not {n for n in _imports(path) if n not in sys.stdlib_module_names} - {"forkjoin_scheduler"}


def _attributes(path: Path) -> list[ast.Attribute]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]


#: What of vLLM's KV cache one file of the seam alone may touch: the scheduler's managers, and the workers' tensors.
INSIDES = {
    "kv.py": (
        "coordinator single_type_managers block_pool req_to_blocks num_cached_block pop_blocks_for_free "
        "free_blocks cache_blocks get_blocks create_kv_cache_blocks num_gpu_blocks get_num_skipped_tokens"
    ),
    "runner.py worker.py": "kv_cache",
    "layouts.py runner.py worker.py": "static_forward_context",
}


@pytest.mark.parametrize("files", INSIDES)
def test_only_these_files_touch_the_kv_caches_insides(files):
    insides = set(INSIDES[files].split())
    touching = {p.name for p in SOURCES for a in _attributes(p) if a.attr in insides}
    assert touching == set(files.split())


def test_all_others_ask_the_kv_cache_manager_for_nothing_but_to_free_a_request():
    asked = {
        a.attr
        for p in SOURCES
        for a in _attributes(p)
        if isinstance(a.value, ast.Attribute) and a.value.attr == "kv_cache_manager"
    }
    assert asked == {"free"}


# ---- the scheduler and its parts -------------------------------------------------------------

OURS = SEAM_OF_ENGINE / "scheduler.py"
MAX_METHODS = 25


def _classes(path: Path) -> list[ast.ClassDef]:
    return [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]


def _methods(node: ast.AST) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef)]


def _overrides() -> list[ast.FunctionDef]:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    (ours,) = _classes(OURS)
    return [m for m in ours.body if isinstance(m, ast.FunctionDef) and hasattr(AsyncScheduler, m.name)]


def test_one_class_stands_on_vllms_so_async_scheduling_stays_on():
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler

    assert ForkJoinScheduler.__bases__ == (AsyncScheduler,)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_class_has_more_methods_than_a_reader_can_hold(path):
    for cls in _classes(path):
        num = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in cls.body)
        assert num <= MAX_METHODS, f"{cls.name}: expected at most {MAX_METHODS} methods, got {num}"


def test_each_part_is_made_of_those_before_it():
    """So it can be read, and tested, without those behind it."""
    init = next(m for m in _methods(_classes(OURS)[0]) if m.name == "__init__")
    made: set[str] = set()
    for node in init.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Name)
        ):
            given = {a.id for a in node.value.args if isinstance(a, ast.Name)}
            assert given - {"self", "settings", "num_front_ends"} <= made, ast.unparse(node)
            made |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    assert len(made) > 15


def test_each_override_of_a_method_of_vllms_scheduler_calls_it():
    assert [m.name for m in _overrides() if f"super().{m.name}" not in ast.unparse(m)] == []


def test_what_we_override_of_vllms_scheduler_is_known():
    assert {m.name for m in _overrides()} - {"__init__"} == {
        "_holds_kv_blocks",
        "get_num_unfinished_requests",
        "has_requests",
        "_preempt_request",
        "_get_local_prefix_cache_hit",
        "_free_request_blocks",
        "_update_request_with_output",
        "_update_after_schedule",
        "update_draft_token_ids",
        "_handle_blocked_waiting_request",
        "_free_request",
        "add_request",
        "schedule",
        "update_from_output",
        "finish_requests",
        "reset_prefix_cache",
    }


def test_our_overrides_take_the_parameters_of_vllms_methods():
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler

    for method in _overrides():
        if method.name != "__init__":
            theirs = _shape(getattr(AsyncScheduler, method.name))
            is_static = isinstance(inspect.getattr_static(AsyncScheduler, method.name), staticmethod)
            ours = _shape(vars(ForkJoinScheduler)[method.name])[is_static:]
            if method.name in HANDS_ON:
                _, kind, _ = ours.pop()
                assert kind is inspect.Parameter.VAR_POSITIONAL, method.name
                del theirs[len(ours) :]
            assert ours == theirs, method.name


#: Overrides of methods that have a parameter in one of the versions only, which is handed on as it is.
HANDS_ON = {"_get_local_prefix_cache_hit"}


def _shape(function) -> list[tuple]:
    """Names, kinds and defaults of the parameters."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_copies_schedule(path):
    for method in _methods(ast.parse(path.read_text())):
        if method.name in ("schedule", "update_from_output"):
            assert f"super().{method.name}(" in ast.unparse(method)
            assert len(ast.unparse(method).splitlines()) < 40


# ---- the workers' and the front end's side -------------------------------------------------

V1, V2 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner", "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
STATES, FLASH = "vllm.v1.worker.gpu.model_states.default", "vllm.v1.attention.backends.flash_attn"
#: Our class -> the one of vLLM that it stands in front of.
IN_FRONT = {
    "worker:ObeysOrdersV1": V1,
    "worker:ObeysOrdersV2": V2,
    "worker:ForkJoinWorker": "vllm.v1.worker.gpu_worker:Worker",
    "runner:GroupsRows": V2,
    "runner:GroupingWorker": "vllm.v1.worker.gpu_worker:Worker",
    "model_state:GroupingModelState": f"{STATES}:DefaultModelState",
    "flash_attention:GroupedAttention": f"{FLASH}:FlashAttentionImpl",
    "worker:OffsetPositions": "vllm.v1.worker.gpu.model_states.interface:ModelState",
    "output:ForkJoinOutputProcessor": "vllm.v1.engine.output_processor:OutputProcessor",
}


def _named(target: str) -> type:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("ours", IN_FRONT)
def test_what_stands_in_front_of_vllms_workers_hands_every_call_on(ours):
    module, _, name = ours.partition(":")
    theirs = _named(IN_FRONT[ours])
    tree = ast.parse(next(SEAM_OF_ENGINE.rglob(f"{module}.py")).read_text())
    cls = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    overrides = [m for m in _methods(cls) if hasattr(theirs, m.name) and not m.name.startswith("__")]
    assert overrides != []
    for method in overrides:
        source = ast.unparse(method)
        assert f"super().{method.name}(" in source or f"self._inner.{method.name}(" in source
        parameters = list(inspect.signature(getattr(theirs, method.name)).parameters)
        if method.args.vararg is None:
            assert [a.arg for a in method.args.args] == parameters
        else:
            named = [a.arg for a in method.args.args]
            assert named == parameters[: len(named)]


# ---- what we build on ----------------------------------------------------------------------

SCHEDULER, REQUEST = "vllm.v1.core.sched.async_scheduler:AsyncScheduler", "vllm.v1.request:Request"
MANAGER = "vllm.v1.core.kv_cache_manager:KVCacheManager"
COORDINATOR = "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator"
SINGLE = "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager"

OFFLOADING = "vllm.distributed.kv_transfer.kv_connector.v1"

#: What vLLM's constructors set, and the seam reads or writes: class -> names.
ATTRIBUTES = {
    SCHEDULER: (
        "running waiting kv_holding_waiting deferred_waiting _inflight_prefills reset_preempted_req_ids "
        "num_waiting_for_streaming_input max_num_active_reqs kv_cache_manager requests max_model_len "
        "vllm_config current_step max_num_scheduled_tokens deferred_frees policy _pause_state "
        "prefill_capacity_bound kv_cache_config hash_block_size structured_output_manager scheduler_config "
        "num_spec_tokens num_lookahead_tokens _spec_decode_step_blocks use_pp connector "
        "finished_recving_kv_req_ids sched_step_seq processed_step_seq"
    ),
    f"{OFFLOADING}.offloading_connector:OffloadingConnector": "connector_scheduler",
    f"{OFFLOADING}.offloading.scheduler:OffloadingConnectorScheduler": "_req_status",
    f"{OFFLOADING}.offloading.scheduler:RequestOffloadState": "config group_states",
    f"{OFFLOADING}.offloading.scheduler:SchedulerOffloadConfig": "kv_group_configs",
    f"{OFFLOADING}.offloading.scheduler:GroupOffloadConfig": "tokens_per_block tokens_per_chunk",
    f"{OFFLOADING}.offloading.scheduler:RequestGroupState": "block_ids offload_keys next_stored_chunk_idx",
    "vllm.config:KVTransferConfig": "kv_connector kv_connector_module_path kv_role",
    MANAGER: "coordinator block_pool",
    COORDINATOR: "single_type_managers",
    SINGLE: "block_size req_to_blocks num_cached_block",
    "vllm.v1.core.block_pool:BlockPool": "num_gpu_blocks",
    "vllm.v1.core.kv_cache_utils:KVCacheBlock": "block_id ref_cnt is_null",
    REQUEST: (
        "request_id status stop_reason sampling_params _all_token_ids _output_token_ids "
        "output_token_ids _block_hasher block_hashes prompt_token_ids num_prompt_tokens max_tokens "
        "num_computed_tokens spec_token_ids drop_stale_output num_stale_output_tokens "
        "num_in_flight_tokens num_output_placeholders client_index arrival_time lora_request cache_salt "
        "priority kv_transfer_params trace_headers resumable prompt_embeds mm_features "
        "skip_reading_prefix_cache next_decode_eligible_step prefill_stats structured_output_request "
        "is_prefill_chunk"
    ),
    "vllm.v1.structured_output:StructuredOutputManager": "reasoner_cls",
    "vllm.v1.structured_output.request:StructuredOutputRequest": (
        "reasoner reasoning_ended reasoning_parser_kwargs"
    ),
    "vllm.sampling_params:StructuredOutputsParams": "_backend",
    "vllm.parser.abstract_parser:Parser": "_tool_parser model_tokenizer",
    "vllm.config.parallel:ParallelConfig": "_api_process_count",
    "vllm.v1.core.sched.output:SchedulerOutput": (
        "num_scheduled_tokens total_num_scheduled_tokens scheduled_spec_decode_tokens scheduled_new_reqs "
        "scheduled_cached_reqs"
    ),
    "vllm.v1.outputs:ModelRunnerOutput": "req_ids sampled_token_ids",
    "vllm.v1.outputs:DraftTokenIds": "req_ids draft_token_ids",
    "vllm.config.speculative:SpeculativeConfig": (
        "method num_speculative_tokens parallel_drafting prompt_lookup_min prompt_lookup_max"
    ),
    "vllm.v1.engine:EngineCoreOutputs": "outputs",
    "vllm.v1.engine:EngineCoreOutput": (
        "request_id new_token_ids new_logprobs finish_reason stop_reason kv_transfer_params trace_headers"
    ),
    "vllm.v1.engine.output_processor:OutputProcessor": "request_states tokenizer tracing_enabled",
    "vllm.v1.engine.output_processor:RequestState": "request_id parent_req external_req_id",
    "vllm.v1.engine.parallel_sampling:ParentRequest": "external_req_id",
    "vllm.v1.engine:EngineCoreRequest": (
        "request_id prompt_token_ids sampling_params cache_salt data_parallel_rank mm_features prompt_embeds "
        "lora_request"
    ),
    "vllm.config:ParallelConfig": "_api_process_count data_parallel_index",
    "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware": "app api_tokens",
    "vllm.renderers.base:BaseRenderer": "_executor _tokenize_prompt_async",
    "vllm.renderers.hf:HfRenderer": "_apply_chat_template_async",
    "vllm.renderers.deepseek_v32:DeepseekV32Renderer": "_apply_chat_template_async",
    "vllm.renderers.deepseek_v4:DeepseekV4Renderer": "_apply_chat_template_async",
    "vllm.renderers.kimi_k3:KimiK3Renderer": "_apply_chat_template_async",
    "vllm.renderers.inkling:InklingRenderer": "_inkling_tokenizer _render_async",
    "vllm.renderers.cohere:CohereRenderer": "_render_async",
    V1: "positions input_batch attn_groups kv_cache_config vllm_config max_model_len requests device",
    V2: "model_state input_buffers attn_groups kv_cache_config vllm_config max_model_len",
    "vllm.v1.worker.gpu_worker:Worker": "model_runner use_v2_model_runner",
    "vllm.v1.worker.gpu.input_batch:InputBuffers": "positions",
    "vllm.v1.worker.gpu.input_batch:InputBatch": (
        "req_ids num_scheduled_tokens num_tokens_after_padding positions"
    ),
    "vllm.v1.worker.gpu_input_batch:InputBatch": "req_ids req_id_to_index vocab_size",
    "vllm.v1.worker.gpu_input_batch:CachedRequestState": "req_id sampling_params num_prompt_tokens generator",
    "vllm.v1.worker.gpu.sample.penalties:PenaltiesState": "prompt_bin_mask _new_penalties_reqs",
    "vllm.v1.worker.utils:AttentionGroup": (
        "backend layer_names kv_cache_spec kv_cache_group_id kernel_block_size"
    ),
    f"{FLASH}:FlashAttentionImpl": (
        "scale head_size num_heads num_kv_heads logits_soft_cap vllm_flash_attn_version sliding_window sinks "
        "alibi_slopes attn_type kv_cache_dtype"
    ),
    f"{FLASH}:FlashAttentionMetadataBuilder": "block_size aot_schedule",
    "vllm.utils.argparse_utils:FlexibleArgumentParser": "_option_string_actions",
    "vllm.v1.core.single_type_kv_cache_manager:MambaManager": "cached_blocks_this_step",
    "vllm.v1.worker.gpu.cudagraph_utils:CudaGraphManager": "graphs _capture_descs",
}


@pytest.mark.parametrize("target", ATTRIBUTES)
def test_the_attributes_that_we_build_on_are_set_by_vllms_constructors(target):
    cls = _named(target)
    source = "".join(inspect.getsource(c) for c in cls.__mro__ if c.__module__.startswith("vllm"))
    missing = [a for a in ATTRIBUTES[target].split() if not re.search(rf"\b{a}\b\s*[:=,]", source)]
    assert missing == []


#: Methods and names of vLLM that the seam calls: class or module -> names.
CALLED = {
    SCHEDULER: (
        "__init__ add_request schedule update_from_output finish_requests reset_prefix_cache _preempt_request "
        "_get_local_prefix_cache_hit _free_request_blocks _update_request_with_output _enqueue_waiting_request "
        "_handle_blocked_waiting_request _free_request _holds_kv_blocks get_num_unfinished_requests "
        "has_requests reset_connector_cache "
        "_update_after_schedule update_draft_token_ids"
    ),
    f"{OFFLOADING}.base:KVConnectorBase_V1": "on_new_request get_num_new_matched_tokens has_pending_push_work",
    MANAGER: (
        "allocate_slots get_blocks cache_blocks create_kv_cache_blocks free get_computed_blocks estimate_cached_tokens "
        "pop_blocks_for_free"
    ),
    COORDINATOR: "cache_blocks",
    SINGLE: "pop_blocks_for_free get_num_skipped_tokens",
    "vllm.v1.core.block_pool:BlockPool": "free_blocks get_num_free_blocks touch evict_blocks",
    "vllm.v1.core.sched.request_queue:SchedulingPolicy": "PRIORITY",
    "vllm.v1.core.sched.request_queue:RequestQueue": (
        "add_request prepend_request prepend_requests peek_request pop_request remove_request remove_requests"
    ),
    REQUEST: (
        "num_tokens num_tokens_with_spec num_output_tokens update_block_hashes is_finished use_structured_output "
        "take_prefill_stats take_events"
    ),
    "vllm.v1.structured_output:StructuredOutputManager": "_get_constraint_bounds _get_reasoner grammar_init",
    "vllm.v1.structured_output.backend_types:StructuredOutputGrammar": "accept_tokens validate_tokens",
    "vllm.v1.request:RequestStatus": (
        "WAITING WAITING_FOR_STREAMING_REQ RUNNING PREEMPTED FINISHED_STOPPED FINISHED_LENGTH_CAPPED "
        "FINISHED_ABORTED WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR"
    ),
    "vllm.v1.worker.gpu_input_batch:InputBatch": "add_request _make_prompt_token_ids_cpu_tensor",
    "vllm.v1.worker.gpu.sample.penalties:PenaltiesState": "add_request apply_staged_writes",
    "vllm.v1.engine:EngineCoreOutput": "finished",
    "vllm.v1.outputs:LogprobsLists": "slice_request",
    "vllm.sampling_params:SamplingParams": (
        "num_logprobs bad_words_token_ids _bad_words_token_ids _all_stop_token_ids _validate_structured_outputs"
    ),
    "vllm.envs": "VLLM_MAX_NUM_BAD_WORDS VLLM_MAX_BAD_WORDS_TOTAL_TOKENS",
    V1: "_update_states _prepare_inputs _update_streaming_request",
    "vllm.v1.worker.cpu_model_runner:CPUModelRunner": "_sample _bookkeeping_sync",
    V2: "load_model update_requests gather_batch_req_state sample_tokens",
    f"{STATES}:DefaultModelState": "prepare_attn",
    "vllm.v1.worker.gpu.model_states.interface:ModelSpecificAttnMetadata": "get_extra_attn_kwargs",
    f"{FLASH}:FlashAttentionMetadataBuilder": "build _get_scheduler_metadata",
    "vllm.v1.worker.utils:AttentionGroup": "get_metadata_builder",
    "vllm.v1.worker.gpu_worker:Worker": "init_device initialize_from_config",
    "vllm.v1.worker.gpu.model_states.interface:ModelState": "prepare_inputs prepare_dummy_inputs",
    "vllm.v1.engine.output_processor:OutputProcessor": (
        "process_outputs do_tracing add_request abort_requests _finish_request"
    ),
    "vllm.parser.abstract_parser:DelegatingParser": "parse_delta",
    "vllm.exceptions": "GracefulHTTPError GenerationError",
    "vllm.entrypoints.generate.base.serving:GenerateBaseServing": (
        "_raise_if_error _convert_generation_error_to_streaming_response"
    ),
    "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses": "responses_stream_generator",
    "vllm.entrypoints.anthropic.serving:AnthropicServingMessages": "message_stream_converter",
    "vllm.entrypoints.anthropic.serving": "wrap_data_with_event",
    "vllm.entrypoints.launchers.launcher": "create_server_socket",
    "vllm.entrypoints.serve.middleware.authenticate": "AuthenticationMiddleware",
    "vllm.tracing": "otel_import_error_traceback",
    "vllm.v1.engine.async_llm": "OutputProcessor",
    "vllm.v1.engine.utils": "zmq_socket_ctx",
    "vllm.entrypoints.launchers.api_server.entry": "setup_server run_server",
    "vllm.tokenizers.registry": "cached_tokenizer_from_config get_tokenizer tokenizer_args_from_config",
    "vllm.renderers.registry": "RENDERER_REGISTRY",
    "vllm.renderers.inkling:_HfBackedTmlTokenizer": "encode_text",
    "vllm.renderers.online_renderer": "render_for_completion",
    "vllm.renderers.base:BaseRenderer": "get_tokenizer",
    "vllm.entrypoints.serve.exception_handling.error_response": "create_error_response",
    "vllm.config:ParallelConfig": "use_ubatching",
    "vllm.config.multimodal:MultiModalConfig": "is_multimodal_pruning_enabled mm_processor_cache_type",
    "vllm.v1.core.sched.output": "strip_covered_mm_data",
    "vllm.model_executor.models.qwen2": "Qwen2Attention Qwen2ForCausalLM",
    "vllm.transformers_utils.model_arch_config_convertor": (
        "MODEL_ARCH_CONFIG_CONVERTORS ModelArchConfigConvertorBase"
    ),
    "torch.cpu": "_init_amx",
    "vllm._custom_ops": "cpu_has_amx_fp8",
    "vllm.utils.torch_utils": "async_tensor_h2d kv_cache_dtype_str_to_dtype",
    "vllm.utils.cpu_resource_utils": "get_allowed_cpu_list get_memory_node_info",
    "vllm.v1.attention.backends.cpu_attn": "_get_attn_isa",
    "vllm.v1.kv_cache_interface": "FullAttentionSpec MLAAttentionSpec get_kv_quant_mode is_quantized_kv_cache",
    "vllm.v1.kv_cache_interface:FullAttentionSpec": "page_size_bytes",
    "vllm.config:VllmConfig": "num_prefill_lookahead_tokens",
    "vllm.config:ModelConfig": "get_num_kv_heads get_head_size get_num_layers get_sliding_window uses_mrope",
    "vllm.engine.arg_utils:AsyncEngineArgs": "from_cli_args create_engine_config",
    "vllm.utils.import_utils": "resolve_obj_by_qualname",
    "vllm.v1.worker.cpu_worker": "CPUWorker",
    "vllm.entrypoints.cli.serve:ServeSubcommand": "subparser_init validate cmd",
    "vllm.utils.argparse_utils": "FlexibleArgumentParser",
    "vllm.utils.argparse_utils:FlexibleArgumentParser": "load_config_file parse_args",
}


@pytest.mark.parametrize("target", CALLED)
def test_the_members_that_we_call_exist(target):
    loaded = _named(target) if ":" in target else importlib.import_module(target)
    assert [name for name in CALLED[target].split() if not hasattr(loaded, name)] == []


#: Names by which the seam's files know an object of vLLM's: (file, name) -> class.
KNOWN_AS = (
    {("scheduler.py", "self"): SCHEDULER, ("queues.py", "scheduler"): SCHEDULER}
    | {
        ("kv.py", "manager"): MANAGER,
        ("kv.py", "single"): SINGLE,
        ("kv.py", "state"): f"{SINGLE.split(':')[0]}:MambaManager",
    }
    | {
        ("requests.py", "root"): REQUEST,
        ("outputs.py", "parent"): REQUEST,
        ("starting.py", "parent"): REQUEST,
    }
    | {(path.name, "request"): REQUEST for path in SEAM_OF_ENGINE.rglob("*.py")}
    | {(path.name, "_core.scheduler"): SCHEDULER for path in SEAM_OF_ENGINE.rglob("*.py")}
)


def _used(path: Path) -> set[tuple[str, str]]:
    """(class, member) for each member of an object of vLLM's that the file touches by a known name."""
    used = set()
    for node in _attributes(path):
        name = node.value.id if isinstance(node.value, ast.Name) else None
        if isinstance(node.value, ast.Attribute) and node.value.attr == "request":
            name = "request"  # live.request, job.request
        if ast.unparse(node.value) == "self._core.scheduler":
            name = "_core.scheduler"
        if ast.unparse(node.value) == "super()" and path == OURS:
            name = "self"
        if target := KNOWN_AS.get((path.name, name or "")):
            used.add((target, node.attr))
    return used


def _ours() -> set[str]:
    """Members that the scheduler has beside vLLM's."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    (cls,) = _classes(OURS)
    names = {m.name for m in _methods(cls)}
    for node in ast.walk(cls):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) == "self"
        ):
            names.add(node.attr)
    return {n for n in names if not hasattr(AsyncScheduler, n)} - set(ATTRIBUTES[SCHEDULER].split())


def test_the_lists_name_every_member_of_vllms_that_the_seam_touches():
    listed = {(t, n) for table in (ATTRIBUTES, CALLED) for t, names in table.items() for n in names.split()}
    ours = {(SCHEDULER, name) for name in _ours()}
    used = {member for path in SEAM_OF_ENGINE.rglob("*.py") for member in _used(path)}
    assert used - ours - listed == set()


def test_the_lists_name_nothing_that_the_seam_no_longer_touches():
    words = set()
    for path in SOURCES:
        if any(str(path.relative_to(ROOT)).startswith(seam) for seam in SEAM):
            words |= set(re.findall(r"\w+", path.read_text()))
    listed = {n for table in (ATTRIBUTES, CALLED) for names in table.values() for n in names.split()}
    assert listed - words == set()


def test_every_private_member_of_anothers_that_the_seam_touches_is_listed():
    """Private members of vLLM's by whatever name it is known: those that none of our files defines."""
    listed = {n for table in (ATTRIBUTES, CALLED) for names in table.values() for n in names.split()}
    seam = [p for p in SOURCES if any(str(p.relative_to(ROOT)).startswith(name) for name in SEAM)]
    defined = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                defined |= {node.attr} if ast.unparse(node.value) == "self" else set()
    private = {a.attr for p in seam for a in _attributes(p) if re.match("_[a-z]", a.attr)}
    assert private - defined - listed == set()


def test_thread_events_ride_on_fields_that_vllms_output_has():
    from forkjoin_scheduler.vllm_seam.front_end import wire

    events = [Joined(prefilled_tokens=3, parent_index=-1)]
    before = time.time_ns()
    told = wire.unpack(wire.pack("r", events, 1))
    assert told[:2] == ("r", events)
    assert before <= told.time_ns <= time.time_ns()
    assert told.engine == 1
    assert wire.unpack(type(wire.pack("r", [], 0))(request_id="r", new_token_ids=[1])) is None


def test_vllm_makes_the_span_of_a_request_under_the_name_that_ours_goes_by():
    from vllm.v1.engine.output_processor import OutputProcessor

    from forkjoin_scheduler.vllm_seam.front_end import tracing

    assert f'span_name="{tracing.REQUEST}"' in inspect.getsource(OutputProcessor.do_tracing)


def test_a_sigterm_while_the_engine_starts_is_lost_but_for_our_patch(monkeypatch):
    import zmq
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.v1.engine import utils

    from forkjoin_server.vllm_seam.start.signals import keep_sigterm

    async def start_engine(*_: object) -> None:
        with utils.zmq_socket_ctx("inproc://handshake", zmq.ROUTER, bind=True) as _socket:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(entry, "decorate_logs", lambda *_, **__: None)
    monkeypatch.setattr(entry, "setup_server", lambda *_, **__: ("", None))
    monkeypatch.setattr(entry, "run_server_worker", start_engine)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asyncio.run(entry.run_server(None))  # once it raises, the patch can go
        keep_sigterm()
        with pytest.raises(SystemExit, match="0"):
            asyncio.run(entry.run_server(None))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_server_one_of_whose_processes_has_died_has_a_time_to_end_in_and_one_that_is_asked_to_end_its_own(
    monkeypatch,
):
    from vllm.entrypoints.cli import serve

    from forkjoin_server.vllm_seam.start import dead_processes

    limits: list[float] = []
    monkeypatch.setattr(dead_processes, "end_within", limits.append)

    def wait_for(what: BaseException) -> None:
        def wait(**_: object) -> None:
            raise what

        monkeypatch.setattr(serve, "wait_for_completion_or_failure", wait)
        dead_processes.bound_failures()
        with pytest.raises(type(what)):
            serve.wait_for_completion_or_failure(api_server_manager=None)

    wait_for(SystemExit())
    assert limits == []
    wait_for(RuntimeError("a process died"))
    assert limits == [dead_processes.FAILURE_S]


def test_another_minor_version_of_vllm_is_refused_saying_what_to_install(monkeypatch):
    from forkjoin_scheduler.vllm_seam import compat

    compat.check_version()
    for version in ("0.32.0", "0.33.1"):
        monkeypatch.setattr(compat.vllm, "__version__", version)
        compat.check_version()
    for version in ("0.31.0", "0.34.0"):
        monkeypatch.setattr(compat.vllm, "__version__", version)
        with pytest.raises(UnsupportedEngine, match=rf"0\.32\.x or 0\.33\.x, found {version}: install"):
            compat.check_version()


def test_the_blocks_of_a_thread_that_saw_its_header_only_begin_no_joined_context(make_dialect):
    from forkjoin_scheduler.families.family import Branch
    from forkjoin_scheduler.families.fork import ThreadPlan

    thread = Branch("r#0", plan=ThreadPlan("1", "", (1,), (1,)))
    for context, keeps in [("header", False), ("parent", True)]:
        dialect = make_dialect(thread={"header": "x", "context": context})
        assert dialect.join.keeps_blocks_of(dialect, thread) is keeps
