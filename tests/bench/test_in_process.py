"""The engine in the client's own process: what it leaves behind in that."""

from __future__ import annotations

import asyncio
import os

import pytest
import vllm
from vllm.v1.engine.async_llm import AsyncLLM

from forkjoin_bench.vllm_seam.async_engine import InProcess
from forkjoin_bench.vllm_seam.serving import RECORD_VARIABLE


@pytest.mark.parametrize("given", [None, "mine"])
@pytest.mark.parametrize("fails", [False, True])
def test_servers_that_start_after_it_inherit_nothing_of_its_environment(monkeypatch, tmp_path, given, fails):
    seen = []

    def start(args):
        seen.append((os.environ["FORKJOIN_TEST_PLUGINS"], os.environ[RECORD_VARIABLE]))
        if fails:
            raise RuntimeError

    monkeypatch.setattr(vllm, "AsyncEngineArgs", lambda **_: None)
    monkeypatch.setattr(AsyncLLM, "from_engine_args", start)
    monkeypatch.delenv("FORKJOIN_TEST_PLUGINS", raising=False)
    if given is not None:
        monkeypatch.setenv("FORKJOIN_TEST_PLUGINS", given)
    before = dict(os.environ)
    engine = InProcess("in-process", {}, {"FORKJOIN_TEST_PLUGINS": ""}, tmp_path)
    try:
        asyncio.run(engine.start())
    except RuntimeError:
        assert fails
    assert seen == [("", str(tmp_path / "in-process.steps.jsonl"))]
    assert dict(os.environ) == before
