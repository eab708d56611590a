"""One model over several processes: data-parallel engines behind two API servers, stages of a pipeline."""

from __future__ import annotations

import re

import pytest

from tests.server.asking import ask, ask_together, worksheet
from tests.server.conftest import start_server
from tests.server.reading import by_engine, metrics

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

NUM_THREADS = 3

#: vLLM makes the buffers between stages when it compiles; with this backend it compiles in no time.
PIPELINE_PARALLEL = ("--pipeline-parallel-size", "2", "--no-enforce-eager")
PIPELINE_PARALLEL += ("--compilation-config", '{"mode": 2, "backend": "eager"}')
DATA_PARALLEL = ("--data-parallel-size", "2", "--api-server-count", "2")


def _compare(address: str, num_sheets: int, num_times: int) -> int:
    """Ask so many different worksheets, and then each so many times, all at once; returns how many answers.

    Each has its own threads, and is the same alone as among all.
    """
    sheets = [worksheet(NUM_THREADS, seed) for seed in range(num_sheets)]
    alone = [ask(address, sheet) for sheet in sheets]
    for sheet, told in zip(sheets, alone, strict=True):
        assert [title for title, _ in told.threads] == [p.text for p in sheet.long_problems]
        assert all(content in told.text for _, content in told.threads)
    assert ask_together(address, sheets * num_times) == alone * num_times
    return num_sheets * (1 + num_times)


def test_twenty_families_on_two_engines_stay_whole_and_reach_their_own_clients(tmp_path):
    log = tmp_path / "log"
    with start_server(log, "--dtype", "float32", *DATA_PARALLEL) as (address, _):
        num_answers = _compare(address, 5, 4)
        forks, threads = (
            by_engine(address, f"forkjoin:{name}_total") for name in ("forks", "threads_started")
        )
    assert forks.keys() == {"0", "1"}
    assert all(forks.values()), f"an engine had no request: {forks}"
    assert sum(forks.values()) == num_answers
    assert threads == {engine: NUM_THREADS * num for engine, num in forks.items()}
    ended = re.findall(r"^\((ApiServer_\d) .* the request ended: ", log.read_text(), flags=re.M)
    assert len(ended) == num_answers
    assert set(ended) == {"ApiServer_0", "ApiServer_1"}, "an API server had no request"


def test_families_in_two_stages_of_a_pipeline_answer_as_each_does_alone(tmp_path):
    log = tmp_path / "log"
    # stages that wait for each other on cores that others use, bound to them, take ten times as long
    env = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    with start_server(log, "--dtype", "float32", *PIPELINE_PARALLEL, env=env) as (address, process):
        num_answers = _compare(address, 2, 2)
        assert metrics(address)["forkjoin:forks_total"] == num_answers
    assert process.returncode == 0
    said = log.read_text()
    assert set(re.findall(r"\(Worker_(PP\d) pid", said)) == {"PP0", "PP1"}
    assert not re.search("Traceback|ERROR|CRITICAL", said)
