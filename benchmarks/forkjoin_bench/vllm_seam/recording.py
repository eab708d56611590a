"""Schedulers that write down what each step does: ours, and vLLM's own. Loaded by ``--scheduler-cls``.

One JSON line a step goes to the file that the environment names:

- ``t``: CLOCK_MONOTONIC, which all processes share, when ``schedule`` began and ended, and when
  ``update_from_output`` did;
- ``new``: requests with a prompt not seen before, as [digest, length, seed or null] (a branch that was
  joined has a new one);
- ``n``: of each request in the step, [its first token computed, how many];
- ``free``: free KV blocks once the step had its own, ``total`` in the first line; ``waiting``:
  requests that wait.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput

from forkjoin_bench.inputs.script import digest
from forkjoin_bench.vllm_seam.serving import RECORD_VARIABLE
from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler


class Recorded(AsyncScheduler):
    """Mixed in before a scheduler, notes its steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._file = Path(os.environ[RECORD_VARIABLE]).open("a", encoding="utf-8")  # noqa: SIM115 - as long as the engine
        self._scheduled: deque[dict[str, Any]] = deque()
        #: The length of each live request's prompt, to see when it gets another.
        self._prompts: dict[str, int] = {}
        self._write({"total": self.kv_cache_manager.block_pool.get_num_free_blocks()})

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        began = time.monotonic()
        output = super().schedule(throttle_prefills)
        ended = time.monotonic()
        self._scheduled.append({"t": [began, ended], **self._facts(output)})
        return output

    def _facts(self, output: SchedulerOutput) -> dict[str, Any]:
        new: dict[str, list[Any]] = {}
        computed: dict[str, list[int]] = {}
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = self.requests[request_id]
            computed[request_id] = [request.num_computed_tokens - num_tokens, num_tokens]
            length = request.num_prompt_tokens
            if self._prompts.get(request_id) != length:
                self._prompts[request_id] = length
                params = request.sampling_params
                seed = None if params is None else params.seed
                new[request_id] = [digest(request.all_token_ids[:length]), length, seed]
        for request_id in output.finished_req_ids:
            self._prompts.pop(request_id, None)
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        waiting = len(self.waiting) + len(self.kv_holding_waiting)
        return {"new": new, "n": computed, "free": free, "waiting": waiting}

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        began = time.monotonic()
        result = super().update_from_output(scheduler_output, model_runner_output)
        step = self._scheduled.popleft()
        step["t"] += [began, time.monotonic()]
        self._write(step)
        return result

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()


class RecordedForkJoin(Recorded, ForkJoinScheduler):
    """This project's scheduler."""


class RecordedStock(Recorded):
    """vLLM's own; derived from AsyncScheduler, it serves sync scheduling, the CPU's, as vLLM's does."""
