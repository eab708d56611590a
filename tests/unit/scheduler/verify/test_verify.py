"""The verification of tensor operations: on a CPU all is well, and each operation that is wrong is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace as Facts

import pytest
import torch

from forkjoin_scheduler.tensors import slots, tokens
from forkjoin_scheduler.tensors.tokens import add_offsets
from forkjoin_scheduler.verify import __main__ as command
from forkjoin_scheduler.verify import copies, graphs, kv, rotation, streams
from forkjoin_scheduler.verify.device import use_device
from forkjoin_scheduler.verify.result import Result, not_run, summary, table

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_cases(monkeypatch):
    """Enough to notice each mutation; the command runs all."""
    monkeypatch.setattr(copies, "BLOCK_SIZES", (16, 32))
    monkeypatch.setattr(copies, "HEADS", ((2, 32),))
    monkeypatch.setattr(kv, "ORDERS", {k: kv.ORDERS[k] for k in ("LBHNC", "BLNHC")})


def failures(check):
    return [r for r in command.run(CPU, [check]) if not r.ok]


def off(source_off, destination_off):
    def wrap(copier):
        def copy(cache, source, destination):
            num = cache.shape[0] * cache.shape[-2]
            copier(cache, (source + source_off) % num, (destination + destination_off) % num)

        return copy

    return wrap


def one_too_few(copier):
    return lambda cache, source, destination: copier(cache, source[:-1], destination[:-1])


def first_head(copier):
    return lambda cache, source, destination: copier(cache[..., :1, :, :], source, destination)


def and_zeros_what_it_read(copier):
    def copy(cache, source, destination):
        copier(cache, source, destination)
        size = cache.shape[-2]
        cache[source // size, ..., source % size, :] = 0

    return copy


def nothing(copier):
    return lambda cache, source, destination: None


MUTATIONS = {
    "source_off": off(1, 0),
    "destination_off": off(0, 1),
    "next_block": off(16, 0),
    "one_too_few": one_too_few,
    "first_head": first_head,
    "clears_sources": and_zeros_what_it_read,
    "nothing": nothing,
}


def test_all_copies_of_the_cpu_are_well():
    results = list(copies.check(CPU))
    assert all(r.ok for r in results)
    assert {r.dtype for r in results} >= {"fp32", "fp16", "bf16", "fp8"}
    named = " ".join({r.operation for r in results})
    assert all(name in named for layout in slots.COPIERS for name in filter(None, layout))


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
@pytest.mark.parametrize("layout", [("FLASH_ATTN", None), ("CPU_ATTN", "vec"), ("CPU_ATTN", "amx")])
def test_a_wrong_copy_is_noticed_in_each_order_and_dtype(monkeypatch, layout, mutation):
    monkeypatch.setattr(slots, "COPIERS", {layout: mutation(slots.COPIERS[layout])})
    results = [r for r in copies.check(CPU) if r.difference is not None]
    wrong = {(r.case.partition(",")[0], r.dtype) for r in results if not r.ok}
    assert wrong == {(r.case.partition(",")[0], r.dtype) for r in results}


def test_a_copy_of_far_slots_leaves_no_byte_wrong():
    assert copies.num_wrong_bytes(CPU, num_blocks=8, far=40) == 0


@pytest.mark.parametrize("name", sorted(MUTATIONS.keys() - {"first_head"}))  # a far cache has one head
def test_a_wrong_copy_of_far_slots_is_noticed(monkeypatch, name):
    wrong = MUTATIONS[name](slots.COPIERS["FLASH_ATTN", None])
    monkeypatch.setattr(slots, "COPIERS", {("FLASH_ATTN", None): wrong})
    assert copies.num_wrong_bytes(CPU, num_blocks=8, far=40) > 0


def test_a_layout_that_keeps_its_k_by_rows_is_not_taken_for_columns(monkeypatch):
    monkeypatch.setattr(slots, "COPIERS", {("CPU_ATTN", "vec"): slots.COPIERS["FLASH_ATTN", None]})
    assert failures(copies.check)


def test_a_layer_that_is_left_out_is_noticed(monkeypatch):
    copy = slots.copy_slots
    monkeypatch.setattr(slots, "copy_slots", lambda caches, *more: copy(list(caches)[:-1], *more))
    assert failures(copies.check)


def test_offsets_and_rotations_of_the_cpu_are_well():
    results = list(rotation.check(CPU))
    assert all(r.ok for r in results)
    assert {r.operation for r in results} == {"offset of positions"} | {
        f"rotation, {s}" for s in rotation.STYLES
    }
    assert all(r.difference > 0 for r in results if r.operation != "offset of positions")


@pytest.mark.parametrize(
    "mutation",
    [
        lambda p, o, n: add_offsets(p, o + 1, n),
        lambda p, o, n: add_offsets(p, o[:-1], n),
        lambda p, o, n: add_offsets(p, o.roll(1), n),
        lambda p, o, n: add_offsets(p, o, n + 1),
        lambda p, o, n: add_offsets(p, -o, n),
        lambda p, o, n: add_offsets(p if p.dim() == 1 else p[:1], o, n),
        lambda p, o, n: None,
    ],
    ids=["one_more", "one_token_less", "next_token", "past_the_end", "sign", "first_row_only", "none"],
)
def test_a_wrong_offset_is_noticed(monkeypatch, mutation):
    monkeypatch.setattr(tokens, "add_offsets", mutation)
    assert any(r.operation == "offset of positions" for r in failures(rotation.check))


def test_a_rotation_by_other_positions_is_noticed_in_each_dtype(monkeypatch):
    monkeypatch.setattr(tokens, "add_offsets", lambda p, o, n: add_offsets(p, o + 1, n))
    wrong = {(r.operation, r.dtype) for r in failures(rotation.check)}
    assert wrong >= {(f"rotation, {s}", d) for s in rotation.STYLES for d in rotation.DTYPES}


@pytest.mark.parametrize("check", [graphs.check, streams.check])
def test_what_needs_a_gpu_says_that_it_has_not_run(check):
    (result,) = check(CPU)
    assert result.ok
    assert (result.verdict, result.note) == ("not run", "needs a GPU")


def test_a_check_that_raises_has_failed_and_the_others_still_run():
    def broken(device):
        raise RuntimeError("no kernel image\nis available")

    results = command.run(CPU, [broken, graphs.check])
    assert [r.ok for r in results] == [False, True]
    assert results[0].note == "RuntimeError: no kernel image"


def test_a_difference_that_is_no_number_has_failed():
    assert not Result("o", "c", "fp32", float("nan"), 1.0).ok


def test_the_table_shows_the_case_that_is_furthest_from_its_bound():
    results = [Result("o", c, "fp32", d, 1.0) for c, d in (("a", 0.5), ("b", 7.0), ("c", 2.0))]
    header, row, other = table([*results, not_run("p", "needs a GPU")]).splitlines()
    assert header.split()[:3] == ["operation", "dtype", "cases"]
    assert row.split() == ["o", "fp32", "3", "7", "1", "FAILED", "b"]
    assert other.endswith("not run  needs a GPU")


def test_the_summary_counts_what_did_not_run_apart():
    well, wrong, not_here = (
        Result("o", "c", "fp32", 0.5, 1.0),
        Result("o", "c", "fp32", 2, 1),
        not_run("p", "x"),
    )
    assert summary([well, well]) == "2 cases: all within their bounds"
    assert summary([well, not_here]) == "1 cases: all within their bounds; 1 more did not run"
    assert summary([well, wrong, not_here]) == "2 cases: 1 FAILED; 1 more did not run"
    assert summary([not_here]) == "NOTHING RAN: 1 cases could not"


def run_command(*argv):
    """In a process of its own, for here vLLM may have been imported already."""
    script = (
        "import sys; from forkjoin_scheduler.verify import __main__ as m, copies\n"
        "copies.BLOCK_SIZES = (16,)\n"
        "code = m.main(sys.argv[1:])\n"
        "assert not {'vllm', 'pydantic', 'msgspec'} & {*sys.modules}, 'imported more than torch'\n"
        "sys.exit(code)"
    )
    return subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True)


def test_the_command_needs_torch_alone_and_writes_a_report(tmp_path):
    done = run_command("--device", "cpu", "--json", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stderr
    assert "all within their bounds" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is True
    assert report["facts"]["torch"] == torch.__version__
    assert {"operation", "case", "dtype", "difference", "bound", "note", "ok"} == report["results"][0].keys()


def test_a_failure_is_the_commands_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(command, "run", lambda device: [Result("o", "c", "fp32", 2.0, 1.0)])
    assert command.main(["--device", "cpu"]) == 1
    assert "1 FAILED" in capsys.readouterr().out


def test_a_device_that_is_none_is_refused(capsys):
    assert command.main(["--device", "cuda:9"]) == 2
    assert "--device: expected a device that torch can use, got cuda:9" in capsys.readouterr().err


def test_a_gpu_that_is_asked_for_becomes_the_current_one(monkeypatch):
    gpu, current = torch.device("cuda:1"), []
    monkeypatch.setattr(
        torch, "zeros", lambda n, device: Facts(device=torch.device(device), cpu=lambda: None)
    )
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert use_device("cpu") == CPU
    assert current == []
    assert use_device("cuda:1") == gpu
    assert current == [gpu]


@pytest.mark.parametrize("where", ["no_such_folder/report.json", "."])
def test_a_report_that_can_not_be_written_is_refused_at_once(tmp_path, capsys, where):
    assert command.main(["--device", "cpu", "--json", str(tmp_path / where)]) == 2
    assert "--json: expected a file" in capsys.readouterr().err
