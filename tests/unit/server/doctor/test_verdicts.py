"""Every option of ``vllm serve`` has one verdict, and the doctor says the verdict of each that is given."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from docgen import compatibility
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.vllm_seam import compat
from forkjoin_server.doctor.verdicts import together
from forkjoin_server.doctor.verdicts.checks import options, variables
from forkjoin_server.doctor.verdicts.others import NEWER, OTHERS
from forkjoin_server.doctor.verdicts.table import RULES
from forkjoin_server.doctor.verdicts.verdict import Verdict
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.start.command_line import ServeParser
from tests.engine.shape_table import CASES

ROOT = Path(__file__).parents[4]
CLASSED = Counter(
    [
        *(name for rule in RULES for name in rule.names),
        *(name for others in OTHERS for name in others.names),
    ]
)


@pytest.fixture(scope="module")
def vllms():
    """The names of all options of vLLM's."""
    parser = ServeParser(lambda parser: None, default_model="model", default_drain_s=1)
    dests = {action.dest for action in parser.serve._actions if action.option_strings}
    return {dest.replace("_", "-") for dest in dests} - {"help"}


def test_every_option_of_vllms_has_a_verdict(vllms):
    assert not vllms - CLASSED.keys(), "class them in doctor/verdicts, by what was tested"


def test_no_option_has_two_and_none_is_unknown_to_vllm(vllms):
    assert not [name for name, num in CLASSED.items() if num > 1]
    assert {name for name in CLASSED if not name.isupper()} - set(NEWER) <= vllms


def test_a_vllm_has_all_options_of_the_next_or_none(vllms):
    assert set(NEWER) <= CLASSED.keys()
    assert set(NEWER) & vllms in (set(), set(NEWER))


def test_what_is_said_to_be_tested_is_tested_there():
    for rule in RULES:
        assert rule.verdict in (Verdict.WORKS, Verdict.LIMITED, Verdict.REFUSED)
        assert (ROOT / rule.tested).exists(), rule
        assert rule.tested or rule.verdict is not Verdict.WORKS, rule


def test_what_is_said_to_be_refused_the_engine_refuses():
    for rule in RULES:
        if rule.refusal:
            assert any(rule.refusal in sentence for sentence, _ in compat.REFUSED), rule


def test_vllm_still_runs_no_workers_on_ray_without_gpus():
    from vllm.platforms.cpu import CpuPlatform

    assert not CpuPlatform.ray_device_key, "test forks with --distributed-executor-backend ray, and say so"


@pytest.mark.parametrize(
    ("given", "refusals", "lines"),
    [
        (["port", "block-size"], [], ["OK    options       works: --block-size", "--port"]),
        (["port", "host"], [], ["OK    options       does not touch fork/join: --host, --port"]),
        (["optimization-level"], [], ["WARN  options       not tested with forks: --optimization-level: compare"]),
        (["an-option-of-the-next-vllm"], [], ["WARN  options       not tested with forks: --an-option"]),
        (["pipeline-parallel-size"], [], ["OK    options       --pipeline-parallel-size, works with limits: Re-"]),
        (["pipeline-parallel-size"], ["pipeline parallelism: no"],
         ["FAIL  options       --pipeline-parallel-size, refused: pipeline parallelism: no: drop it"]),
        (["decode-context-parallel-size"], [], ["OK    options       --decode-context-parallel-size, works as it is"]),
        ({"kv-cache-dtype": "fp8"}, [], ["OK    options       --kv-cache-dtype, works with limits: fp8"]),
        ({"kv-cache-dtype": "int4"}, [], ["WARN  options       --kv-cache-dtype int4, not tested with forks: fp8"]),
        ({"enable-dbo": True}, [], ["WARN  options       --enable-dbo True, not tested with forks"]),
        ({"VLLM_BATCH_INVARIANT": "1"}, [], ["WARN  options       VLLM_BATCH_INVARIANT 1, not tested with forks"]),
        ([], ["pipeline parallelism: no"], []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list | dict) else str(value),
)  # fmt: skip
def test_each_given_option_is_in_one_line_of_the_doctors(given, refusals, lines):
    given = given if isinstance(given, dict) else dict.fromkeys(given)
    said = [str(check) for check in options(given, refusals)]
    assert len(said) == len(lines)
    assert all(line in told for line, told in zip(lines, said, strict=True))


def test_variables_of_the_table_are_told_like_options():
    environ = {"VLLM_BATCH_INVARIANT": "1", "VLLM_PORT": "1", "PATH": "/"}
    assert variables(environ) == {"VLLM_BATCH_INVARIANT": "1"}


def test_pairs_that_were_run_together_are_pairs_of_features_each_once_and_of_a_test():
    pairs = [(one, other) for one, others in together.RUN.items() for other in others]
    assert {name for pair in pairs for name in pair} <= together.FEATURES.keys()
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert all((ROOT / test).exists() for others in together.RUN.values() for test in others.values())


#: What the engines of ``test_shapes`` have, by the shapes of their models; the others' have nothing of its own.
OF_SHAPES = {
    "moe": {"experts"}, "mistral": {"sliding windows"}, "window": {"sliding windows"}, "gemma": {"sliding windows"},
    "gemma_window": {"sliding windows"}, "gpt_oss": {"sliding windows", "experts"},
    "gdn": {"recurrent layers", "experts"}, "mla": {"MLA", "experts"}, "mla_native": {"MLA", "experts"},
    "lfm2": {"recurrent layers"}, "w8a8_fp32": {"W8A8 weights"}, "w8a8": {"W8A8 weights"},
    "awq": {"AWQ or GPTQ weights"}, "gptq": {"AWQ or GPTQ weights"}, "fp8_kv": {"quantised KV"},
}  # fmt: skip


def _pairs(case):
    """The pairs of features that an engine of a case has."""
    features = set() if case.refused else set(OF_SHAPES.get(case.shape, ()))
    features |= {"stitched joins"} if case.join == "stitch" else set()
    features |= {"the V2 runner"} if case.runner.startswith("v2") else set()
    features |= {"async scheduling"} if case.runner.endswith("async") else set()
    return list(combinations(sorted(features), 2))


RUN_CASES = [case for case in CASES if case.has_run]


@pytest.mark.parametrize("case", RUN_CASES, ids=lambda case: f"{case.name}-{case.runner}")
def test_what_the_tests_of_model_families_run_together_is_in_the_table(case):
    assert [pair for pair in _pairs(case) if not together.is_run(*pair)] == []


def test_what_the_table_has_of_these_tests_one_of_them_has_run():
    run = {frozenset(pair) for case in RUN_CASES for pair in _pairs(case)}
    said = {
        frozenset((one, other))
        for one, others in together.RUN.items()
        for other, test in others.items()
        if test == "tests/engine/test_shapes.py"
    }
    assert said - run == set()


def test_the_facts_that_features_are_found_by_are_a_real_configs():
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(model=str(EMBEDDED_MODEL), enforce_eager=True).create_engine_config()
    assert str(together.check(config, load("threadweaver"))).startswith("OK    together")


def test_the_page_on_compatibility_is_made_of_the_table():
    text = compatibility.PAGE.read_text()
    assert compatibility.page(text) == text, "stale: run python -m docgen.compatibility"


def test_a_page_without_a_heading_is_refused():
    with pytest.raises(ValueError, match="expected the heading '## Engine options'"):
        compatibility.page("# Compatibility\n")
