"""What the doctor says of what it sees."""

from __future__ import annotations

import json
import re
import socket
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vllm.config.multimodal import MultiModalConfig
from vllm.platforms import CpuArchEnum, current_platform

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.errors import UnsupportedEngine
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_scheduler.vllm_seam.cache.estimate import Cache, bytes_needed, cache_of, stitching_refusal
from forkjoin_scheduler.vllm_seam.cache.machine import Machine
from forkjoin_server.doctor import beside, environment, examine, kv_budget, ports
from forkjoin_server.doctor import model as models
from forkjoin_server.doctor.check import Check, Status, fail, ok, size, warn
from forkjoin_server.doctor.engine import engine, stitching
from forkjoin_server.doctor.verdicts import together
from forkjoin_server.start.dialect_choice import Choice
from forkjoin_server.start.effective import Value
from tests.unit.conftest import ByteTokenizer

GIB = 1 << 30
CPU = Machine("cpu", "x86", 1, 8 * GIB, 4 * GIB, 2, ("avx2", "avx512f"))
GPU = Machine("cuda", "a GPU", 2, 80 * GIB, 79 * GIB, 16)


def _config(**changes):
    """What is looked at of a VllmConfig: 4 layers of 6 heads of 32, as the embedded model has."""
    model = {
        "use_mla": False,
        "get_num_kv_heads": lambda parallel: 6,
        "get_head_size": lambda: 32,
        "get_num_layers": lambda parallel: 4,
        "get_sliding_window": lambda: None,
        "dtype": torch.float32,
        "max_model_len": 1024,
        "uses_mrope": False,
        "multimodal_config": None,
        "is_hybrid": False,
        "is_attention_free": False,
        "is_diffusion": False,
        "runner_type": "generate",
        "architecture": "LlamaForCausalLM",
        "using_transformers_backend": lambda: False,
        "model": "/",
        "is_multimodal_model": False,
        "is_moe": False,
        "return_sampling_mask": False,
        "quantization": None,
        "hf_config": SimpleNamespace(),
    }
    cache = {
        "block_size": 128,
        "cache_dtype": "auto",
        "kv_cache_memory_bytes": GIB,
        "gpu_memory_utilization": 0.9,
        "num_gpu_blocks_override": None,
        "enable_prefix_caching": True,
        "use_replayssm": False,
    }
    parallel = {
        "tensor_parallel_size": 1,
        "data_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "worker_cls": "forkjoin_scheduler.vllm_seam.worker.ForkJoinWorker",
    }
    groups = {"model_config": model, "cache_config": cache, "parallel_config": parallel}
    for group in groups.values():
        group |= {name: value for name, value in changes.items() if name in group}
    return SimpleNamespace(
        **{name: SimpleNamespace(**group) for name, group in groups.items()},
        additional_config={},
        kv_transfer_config=None,
        speculative_config=None,
        lora_config=None,
        aux_output_config=SimpleNamespace(enabled=False),
        use_v2_model_runner=False,
        scheduler_config=SimpleNamespace(
            max_num_seqs=changes.get("max_num_seqs", 128),
            async_scheduling=False,
            disable_hybrid_kv_cache_manager=False,
        ),
        load_config=SimpleNamespace(load_format="auto"),
    )


@pytest.mark.parametrize(
    ("check", "line"),
    [
        (ok("port", "free"), "OK    port          free"),
        (warn("port", "odd", "look"), "WARN  port          odd: look"),
        (fail("port", "taken", "stop it"), "FAIL  port          taken: stop it"),
    ],
)
def test_a_check_is_one_line(check, line):
    assert str(check) == line


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(9, "9 B"), (2048, "2 KiB"), (3 << 20, "3 MiB"), (5 * GIB, "5.0 GiB"), (1 << 41, "2048.0 GiB")],
)
def test_sizes_are_for_a_reader(num_bytes, text):
    assert size(num_bytes) == text


@pytest.mark.parametrize(("statuses", "well"), [("OW", True), ("OWF", False), ("", True)])
def test_a_server_would_start_unless_a_check_fails(statuses, well):
    kinds = {s.value[0]: s for s in Status}
    assert examine.is_well([Check("x", kinds[s], "seen") for s in statuses]) is well


def test_the_json_has_all_that_the_lines_have_and_the_configuration():
    said = json.loads(examine.as_json([fail("port", "taken", "stop it")], [Value("a", "1", "flag")]))
    assert said == {
        "ok": False,
        "checks": [{"name": "port", "status": "FAIL", "seen": "taken", "to_do": "stop it"}],
        "configuration": [{"name": "a", "value": "1", "from": "flag"}],
    }


def test_the_pythons_are_those_of_the_distribution():
    text = (Path(__file__).parents[4] / "pyproject.toml").read_text()
    requires = tomllib.loads(text)["project"]["requires-python"]
    assert re.findall(r"\d+\.\d+", requires) == [
        f"{a}.{b}" for a, b in (environment.OLDEST, environment.TOO_NEW)
    ]
    assert environment.python().status is Status.OK


def test_another_vllm_fails_and_nothing_else_is_looked_at(monkeypatch):
    def refuse():
        raise UnsupportedEngine("expected vLLM 0.32.x or 0.33.x, found 0.34.0: install")

    monkeypatch.setattr(environment, "check_version", refuse)
    assert [c.status for c in examine.installed()] == [Status.OK, Status.FAIL]
    assert "0.34.0" in examine.installed()[1].seen


def test_a_vllm_that_no_test_has_run_whole_is_a_warning(monkeypatch):
    monkeypatch.setattr(environment, "check_version", lambda: ("0.33.0", "not on its own kernels"))
    check = environment.vllm()
    assert check.status is Status.WARN
    assert str(check).count("0.33.0") == str(check).count("not on its own kernels") == 1


@pytest.mark.parametrize(
    ("machine", "num_workers", "status", "said"),
    [
        (CPU, 1, "OK", "x86 with avx2, avx512f, 2 cores"),
        (Machine("cpu", "x86", 1, 1, 1, 2, ("avx2",)), 1, "WARN", "without AVX-512"),
        (Machine("cpu", "x86", 1, 1, 1, 2), 1, "FAIL", "need AVX2"),
        (Machine("cpu", "x86", 1, 1, 1, 1, ("avx2", "avx512f")), 1, "WARN", "give it two"),
        (Machine("cpu", "arm", 1, 1, 1, 2), 1, "OK", "arm, 2 cores"),
        (GPU, 2, "OK", "2 x a GPU"),
        (GPU, 8, "FAIL", "give it 8 or lower --tensor-parallel-size"),
    ],
)
def test_the_processor_is_one_that_vllm_has_kernels_for(machine, num_workers, status, said):
    check = environment.processor(machine, num_workers)
    assert (check.status.value, said in str(check)) == (status, True)


def test_an_allocator_that_is_not_preloaded_is_worth_a_warning():
    assert environment.preload({"LD_PRELOAD": "/usr/lib/libtcmalloc.so.4"}).status is Status.OK
    check = environment.preload({})
    assert check.status is Status.WARN
    assert "LD_PRELOAD" in check.to_do


@pytest.mark.parametrize(("needed", "status"), [(3, "OK"), (5, "FAIL")])
def test_memory_that_is_not_there_fails(needed, status):
    check = environment.memory(CPU, needed * GIB)
    assert check.status.value == status
    assert check.seen == f"4.0 GiB free of 8.0 GiB, {needed}.0 GiB needed"


def test_a_model_is_a_folder_or_in_the_cache_or_to_be_had(tmp_path, monkeypatch):
    import huggingface_hub

    assert environment.hub(str(tmp_path), {}).status is Status.OK
    assert "no folder /no/such" in environment.hub("/no/such", {}).seen
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, local_files_only: "/cache/it")
    assert "in the cache, /cache/it" in environment.hub("their/model", {}).seen

    def miss(name, local_files_only):
        raise FileNotFoundError("no snapshot\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", miss)
    assert environment.hub("their/model", {}).status is Status.WARN
    assert environment.hub("their/model", {"HF_HUB_OFFLINE": "1"}).status is Status.FAIL
    assert models.weight_bytes("their/model") == 0


def test_weights_of_one_format_are_counted(tmp_path):
    for name, num_bytes in [("a.safetensors", 3), ("b.safetensors", 4), ("c.bin", 9), ("d.txt", 99)]:
        (tmp_path / name).write_bytes(b"x" * num_bytes)
    assert models.weight_bytes(str(tmp_path)) == 7


@pytest.mark.parametrize(
    ("num_bytes", "changes", "status", "said"),
    [
        (GIB, {}, "OK", "LlamaForCausalLM, float32, 1.0 GiB of weights, up to 1024 tokens"),
        (0, {}, "FAIL", "put the weights (.safetensors"),
        (GIB, {"using_transformers_backend": lambda: True}, "WARN", "slower"),
    ],
)
def test_a_model_is_told_with_its_weights(num_bytes, changes, status, said):
    check = models.model(_config(**changes), num_bytes)
    assert (check.status.value, said in str(check)) == (status, True)


# One block of the embedded model in float32: K and V of 128 tokens, 6 heads of 32, 4 bytes, 4 layers.
BLOCK_BYTES = 2 * 128 * 6 * 32 * 4 * 4


def test_the_blocks_are_what_the_memory_holds():
    cache = cache_of(_config(), 0, CPU)
    assert (cache.block_bytes, cache.num_blocks) == (BLOCK_BYTES, GIB // BLOCK_BYTES)
    assert cache.num_tokens == cache.num_blocks * 128
    assert cache_of(_config(num_gpu_blocks_override=7), 0, CPU).num_blocks == 7


def test_without_a_size_the_cache_is_what_the_weights_leave():
    config = _config(kv_cache_memory_bytes=None, tensor_parallel_size=2)
    assert cache_of(config, 16 * GIB, GPU).num_blocks == int(72 * GIB - 8 * GIB) // BLOCK_BYTES
    assert bytes_needed(config, 16 * GIB, GPU) == 72 * GIB
    assert bytes_needed(_config(tensor_parallel_size=2, pipeline_parallel_size=2), 8 * GIB, GPU) == 3 * GIB
    assert cache_of(_config(kv_cache_memory_bytes=None), 99 * GIB, GPU).num_blocks == 0
    assert bytes_needed(_config(), 2 * GIB, CPU) == 3 * GIB


def test_mla_keeps_one_vector_a_token():
    cache = cache_of(_config(use_mla=True, get_head_size=lambda: 576), 0, CPU)
    assert cache.block_bytes == 128 * 576 * 4 * 4


@pytest.mark.parametrize(
    ("num_blocks", "num_slots", "status", "said"),
    [
        (
            7,
            128,
            "FAIL",
            "7 blocks of 128 tokens, too few for one context of 1024: give the cache more memory",
        ),
        (8, 128, "WARN", "1.0 contexts of 1024 tokens, or 1 small families"),
        (800, 128, "OK", "100.0 contexts of 1024 tokens, or 64 small families"),
        (800, 1, "WARN", "or raise --max-num-seqs"),
    ],
)
def test_what_fits_in_the_cache_is_told(num_blocks, num_slots, status, said):
    check = kv_budget.kv_budget(_config(max_num_seqs=num_slots), Cache(num_blocks, 128, BLOCK_BYTES))
    assert (check.status.value, said in str(check)) == (status, True)


def test_families_by_hand():
    """Each brings 4 blocks and is expected to take 0.8 of 4 + 4 more: 32 blocks hold 3 of 10.4."""
    assert kv_budget.num_families(Cache(32, 128, 1), 128) == 3
    assert kv_budget.num_families(Cache(31, 128, 1), 128) == 2


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, "OK"), ({"decode_context_parallel_size": 2}, "FAIL"), ({"is_hybrid": True}, "OK")],
)
def test_engine_options_are_those_that_serving_refuses(changes, status):
    check = engine(_config(**changes), Settings.of(load("threadweaver"), {}))
    assert check.status.value == status
    assert engine(_config(**changes), Settings()).status is Status.OK


def test_engine_options_are_checked_with_those_of_the_dialect():
    check = engine(_config(), Settings.of(load("threadweaver"), {}, draft_from="family"))
    assert (check.status, "--draft-from family expects a drafter" in check.seen) == (Status.FAIL, True)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({}, "OK    traces        to http://collector:4317"),
        (
            {"disable_log_stats": True},
            "FAIL  traces        --otlp-traces-endpoint: expected no --disable-log",
        ),
    ],
)
def test_traces_that_serving_refuses_fail(flags, line):
    args = {"otlp_traces_endpoint": "http://collector:4317", "disable_log_stats": False} | flags
    assert str(environment.traces(SimpleNamespace(**args))).startswith(line)


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, "OK"), ({"get_sliding_window": lambda: 64}, "FAIL"), ({"use_mla": True}, "FAIL")],
)
def test_a_kv_cache_that_no_connector_takes_is_seen_before_an_engine_starts(changes, status):
    config = _config(**changes)
    config.kv_transfer_config = SimpleNamespace(
        kv_connector="OffloadingConnector", kv_connector_module_path=None, kv_role="kv_both",
        kv_load_failure_policy="fail", kv_connector_extra_config={},
    )  # fmt: skip
    config.cache_config.prefix_cache_retention_interval = 0
    check = engine(config, Settings.of(load("threadweaver"), {}))
    assert check.status.value == status, check


def _published(form):
    return SimpleNamespace(quantization_config={"quant_method": "compressed-tensors", "format": form})


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("threadweaver", {}, "OK    together      nothing that needs"),
        ("multiverse", {"is_moe": True}, "OK    together      stitched joins, experts: run together"),
        ("threadweaver", {"quantization": "awq", "tensor_parallel_size": 2},
         "WARN  together      no test has run together tensor parallelism and AWQ or GPTQ weights: compare"),
        ("multiverse", {"quantization": "auto_gptq"},
         "WARN  together      no test has run together stitched joins and AWQ or GPTQ weights: compare"),
        ("multiverse", {"quantization": "compressed-tensors", "hf_config": _published("int-quantized")},
         "OK    together      stitched joins, W8A8 weights: run together"),
        ("threadweaver", {"quantization": "compressed-tensors", "hf_config": _published("pack-quantized")},
         "WARN  together      no test has run weights quantised otherwise: compare"),
        ("threadweaver", {"quantization": "fp8", "tensor_parallel_size": 2, "is_moe": True},
         "WARN  together      no test has run weights quantised otherwise; no test has run together tensor par"),
        ("multiverse", {"cache_dtype": "fp8", "is_moe": True},
         "WARN  together      no test has run together experts and quantised KV: compare"),
    ],
)  # fmt: skip
def test_what_no_test_has_run_together_is_said(name, changes, said):
    assert str(together.check(_config(**changes), load(name))).startswith(said)


@pytest.mark.parametrize(
    ("draft_from", "said"),
    [
        ("drafter", "of 4 tokens by ngram"),
        ("family", "of 4 tokens by ngram, where it finds none those of its family"),
    ],
)
def test_who_drafts_is_said(draft_from, said):
    config = _config()
    config.additional_config = {"forkjoin": {"draft_from": draft_from}}
    assert beside.drafts(config).seen.startswith("none; ")
    config.speculative_config = SimpleNamespace(method="ngram", num_speculative_tokens=4)
    assert beside.drafts(config).seen == said


@pytest.mark.parametrize(
    ("setting", "is_cuda", "is_v2", "changes", "said"),
    [
        ("off", True, True, {}, "not grouped: --grouped-attention off"),
        ("auto", False, True, {}, "not grouped: no CUDA device"),
        ("auto", True, False, {}, "not grouped: vLLM's first model runner"),
        ("0", True, True, {"decode_context_parallel_size": 2}, "not grouped: context parallelism"),
        ("auto", True, True, {}, "grouped, if the model's layers and a check at start allow it"),
    ],
)
def test_whether_attention_is_grouped_is_said(monkeypatch, setting, is_cuda, is_v2, changes, said):
    from vllm.config import CUDAGraphMode

    from forkjoin_scheduler.vllm_seam.grouped import eligible

    monkeypatch.setattr(eligible, "current_platform", SimpleNamespace(is_cuda=lambda: is_cuda))
    config = _config(**changes)
    config.use_v2_model_runner = is_v2
    config.additional_config = {"forkjoin": {"grouped_attention": setting}}
    config.parallel_config.use_ubatching = False
    vars(config.model_config).update(rswa_window=None, is_mm_prefix_lm=False)
    config.compilation_config = SimpleNamespace(cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE)
    assert beside.attention(config).seen == said


@pytest.mark.parametrize(
    ("parser", "dialect", "said"),
    [
        ("qwen3", "npr", "after the reasoning, by parser qwen3"),
        ("", "threadweaver", '{"structured": "answer"}'),
        ("", "npr", "from the first token: such requests do not fork"),
    ],
)
def test_from_where_a_grammar_holds_is_said(parser, dialect, said):
    config = _config()
    config.structured_outputs_config = SimpleNamespace(reasoning_parser=parser)
    assert said in beside.answers(config, load(dialect)).seen


PRUNING = MultiModalConfig(video_pruning_rate=0.5)


@pytest.mark.parametrize(
    ("changes", "num_blocks", "status", "said"),
    [
        ({}, 18, "OK", "room to move contexts of 1024 tokens"),
        ({}, 17, "FAIL", "needs 18 KV blocks of 128 tokens, found 17"),
        ({"cache_dtype": "fp8"}, 18, "OK", "room to move contexts"),
        ({"cache_dtype": "int8_per_token_head"}, 18, "FAIL", "quantised"),
        ({"get_sliding_window": lambda: 64}, 18, "FAIL", "sliding window"),
        ({"get_sliding_window": lambda: 1024}, 18, "OK", "room to move contexts"),
        ({"use_mla": True, "get_head_size": lambda: 576}, 18, "OK", "room to move contexts"),
        ({"uses_mrope": True}, 18, "OK", "room to move contexts"),
        ({"uses_mrope": True, "multimodal_config": PRUNING}, 18, "FAIL", "M-RoPE with --video-pruning-rate"),
        ({"worker_cls": "auto"}, 18, "FAIL", "needs --worker-cls"),
    ],
)
def test_stitched_joins_need_a_layout_and_room(changes, num_blocks, status, said, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    check = stitching(_config(**changes), Cache(num_blocks, 128, BLOCK_BYTES), CPU)
    assert (check.status.value, said in str(check)) == (status, True)


def test_a_cpu_for_which_vllm_has_no_kernel_fails_with_its_words(monkeypatch):
    for has in ("_is_avx512_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, has, lambda: False)
    check = stitching(_config(cache_dtype="fp8"), Cache(18, 128, BLOCK_BYTES), CPU)
    assert (check.status, "requires x86 with AVX-512" in check.seen) == (Status.FAIL, True)


def test_kernels_whose_layout_is_not_known_are_seen_before_an_engine_starts(monkeypatch):
    monkeypatch.setattr(current_platform, "get_cpu_architecture", lambda: CpuArchEnum.ARM)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert "found CPU_ATTN (neon)" in stitching_refusal(_config(dtype=torch.bfloat16), CPU)


def test_amx_is_none_of_them(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert stitching_refusal(_config(dtype=torch.bfloat16), CPU) is None


def test_a_port_that_another_listens_on_fails():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        check = ports.port("127.0.0.1", number)
        assert check.status is Status.FAIL
        assert f"127.0.0.1:{number} can't be listened on" in check.seen
    assert ports.port("127.0.0.1", 0).status is Status.OK
    assert ports.port(None, 0).status is Status.OK
    assert ports.port("no.such.host.invalid", 8000).status is Status.FAIL


def test_a_socket_is_made_where_there_is_none(tmp_path):
    assert ports.unix_socket(str(tmp_path / "s")).status is Status.OK
    (tmp_path / "s").touch()
    assert ports.unix_socket(str(tmp_path / "s")).status is Status.FAIL
    assert ports.unix_socket("/no/such/folder/s").status is Status.FAIL


def test_a_driver_that_cannot_be_asked_fails_without_a_traceback(monkeypatch):
    from forkjoin_scheduler.vllm_seam.cache import machine

    def broken():
        raise RuntimeError("no driver")

    monkeypatch.setattr(machine, "machine", broken)
    (check,) = examine.examine(SimpleNamespace(args=SimpleNamespace(model_tag="m", model=None)))
    assert (check.name, check.status) == ("processor", Status.FAIL)
    assert "no driver" in check.seen


def test_this_machine_can_be_asked():
    from forkjoin_scheduler.vllm_seam.cache.machine import machine

    here = machine()
    assert here.kind == "cpu"
    assert 0 < here.available_bytes <= here.total_bytes
    assert here.num_cores > 0


def test_a_model_whose_cache_cannot_be_worked_out_is_a_warning(monkeypatch):
    monkeypatch.setattr(examine, "dialect", lambda config, wanted, choice: ok("dialect", "seen"))
    config = _config(get_head_size=None)
    config.additional_config = {}
    *_, last = examine._served(config, GIB, CPU)
    assert (last.name, last.status) == ("kv_budget", Status.WARN)


def test_whether_such_a_model_can_be_stitched_is_not_left_out(monkeypatch):
    monkeypatch.setattr(examine, "dialect", lambda config, wanted, choice: ok("dialect", "seen"))
    monkeypatch.setattr(examine.beside, "answers", lambda config, wanted: ok("answers", "seen"))
    config = _config(get_head_size=None)
    config.additional_config = {KEY: Settings.of(load("multiverse"), {}).model_dump(mode="json")}
    *_, last = examine._served(config, GIB, CPU)
    assert (last.name, last.status) == ("stitching", Status.WARN)
    assert stitching(_config(), None, CPU).to_do == "start it to see"


@pytest.mark.parametrize(
    ("name", "last", "said"),
    [("threadweaver", "kv_budget", "recurrent layers"), ("multiverse", "stitching", "Mamba layers")],
)
def test_a_hybrid_model_can_fork_and_cannot_stitch(monkeypatch, name, last, said):
    monkeypatch.setattr(examine, "dialect", lambda config, wanted, choice: ok("dialect", "seen"))
    monkeypatch.setattr(examine.beside, "answers", lambda config, wanted: ok("answers", "seen"))
    config = _config(is_hybrid=True)
    config.additional_config = {KEY: Settings.of(load(name), {}).model_dump(mode="json")}
    *_, check = examine._served(config, GIB, CPU)
    assert check.name == last
    assert said in check.seen


def test_a_dialect_that_nobody_named_is_shown_with_the_reason(monkeypatch):
    from forkjoin_scheduler.vllm_seam import compat
    from forkjoin_server.doctor import dialect

    spoken = BoundDialect(load("threadweaver"), ByteTokenizer([]), None)
    monkeypatch.setattr(dialect, "bind_to_model", lambda wanted, config: spoken)
    monkeypatch.setattr(compat, "check_model", lambda wanted, config: None)
    monkeypatch.setattr(dialect, "check_renderer", lambda config, settings: None)
    choice = Choice("threadweaver", "the default: no dialect fits the model", "default")
    check = dialect.dialect(_config(), load("threadweaver"), choice)
    assert check.seen.startswith(
        "threadweaver, the default: no dialect fits the model: each of </Outlines>, "
    )
    assert dialect.dialect(_config(), load("threadweaver")).seen.startswith("threadweaver: each of ")


@pytest.mark.parametrize("error", [OSError("no tokenizer.json\nmore"), TypeError("None")], ids=["os", "type"])
def test_a_model_without_a_tokenizer_fails_for_its_dialect(error, monkeypatch):
    from forkjoin_server.doctor import dialect

    def refuse(wanted, vllm_config):
        raise error

    monkeypatch.setattr(dialect, "bind_to_model", refuse)
    check = dialect.dialect(_config(), load("threadweaver"))
    assert check.status is Status.FAIL
    assert "no tokenizer to read threadweaver by" in check.seen
    assert "more" not in check.seen
