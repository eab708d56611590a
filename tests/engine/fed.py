"""The real scheduler without a model, which a script writes for: small families, small pools, no engine."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from collections.abc import Callable
from typing import Any

from msgspec import to_builtins
from vllm import SamplingParams
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.request import Request

from forkjoin_bench.inputs.script import Compiler
from forkjoin_bench.inputs.traces import Author, Body, Family
from forkjoin_bench.inputs.words import Words
from forkjoin_bench.vllm_seam.fed import Fed, without_model
from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_scheduler.vllm_seam.compat import WORKER
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of
from tests.engine.accounts import check_accounts, check_lost

BLOCK_SIZE = 16


class Scripted(Fed):
    """A scheduler and its requests, stepped by hand. After each step the accounts must match the pool."""

    def __init__(
        self,
        *,
        num_blocks: int = 1000,
        max_num_seqs: int = 8,
        policy: str = "fcfs",
        is_async: bool = False,
        dialect: Dialect | None = None,
        max_model_len: int = 4096,
        prefill_schedule_interval: int = 1,
        connects: KVTransferConfig | None = None,
        **settings: Any,
    ) -> None:
        dialect = dialect or load("threadweaver")
        args = EngineArgs(
            model=str(EMBEDDED_MODEL),
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=2048,
            scheduling_policy=policy,
            prefill_schedule_interval=prefill_schedule_interval,
            enable_chunked_prefill=True,
            enforce_eager=True,
            additional_config={KEY: Settings.of(dialect, {}, **settings).model_dump(mode="json")},
            worker_cls=WORKER if dialect.join.moves_kv else "auto",
            kv_transfer_config=connects,
        )
        config = args.create_engine_config()
        config.cache_config.block_size = BLOCK_SIZE  # behind vLLM's back, which has no such on a CPU
        config.scheduler_config.async_scheduling = is_async
        self.scheduler, hasher = without_model(ForkJoinScheduler, config, num_blocks)
        super().__init__(self.scheduler, hasher)
        tokenizer = tokenizer_of(str(EMBEDDED_MODEL))
        self._compiler = Compiler(tokenizer)
        self._eos = self.scheduler._core.tokenizer.token_id("<|end|>")
        self.author = Author(Words(tokenizer), "scripted")
        #: Outputs for the front end, by request.
        self.outputs: dict[str, list[EngineCoreOutput]] = {}
        #: What families told, in order.
        self.events: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        *body: Any,
        prompt: str | None = None,
        priority: int = 0,
        max_tokens: int = 4000,
        **params: Any,
    ) -> Request:
        """Send the request ``name``, which is to write ``body``: a number stands for so many tokens."""
        parts: Body = tuple(self.author.text(p) if isinstance(p, int) else p for p in body)
        family = Family(name, prompt or self.author.text(64), parts)
        compiled = self._compiler.compile(family)
        self._script |= {c.digest: c.continuation for c in compiled.contexts}
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, **params)
        sampling.update_from_generation_config({}, eos_token_id=self._eos)
        request = Request(
            request_id=name,
            prompt_token_ids=compiled.prompt_ids,
            sampling_params=sampling,
            pooling_params=None,
            block_hasher=self._hasher,
            arrival_time=float(len(self.outputs)),
            priority=priority,
        )
        self.outputs[name] = []
        self._scheduler.add_request(request)
        return request

    def step(self, *, throttle_prefills: bool = False) -> Any:  # type: ignore[override]
        """One step; returns what was scheduled."""
        output = self._scheduler.schedule(throttle_prefills)
        check_accounts(self.scheduler)
        check_lost(self.scheduler)
        for outputs in self._scheduler.update_from_output(output, self._sample(output)).values():
            for one in outputs.outputs:
                if told := wire.unpack(one):
                    self.events += map(to_builtins, told.events)
                else:
                    self.outputs.setdefault(one.request_id, []).append(one)
        check_accounts(self.scheduler)
        return output

    def step_until(self, ready: Callable[[], bool], max_steps: int = 3000) -> None:
        """Step until ``ready``. Raises AssertionError if that takes for ever."""
        for _ in range(max_steps):
            if ready():
                return
            self.step()
        raise AssertionError("the state was not reached")

    def drain(self, until: int | None = None, max_steps: int = 5000) -> list[str]:
        """Step until so many requests (None: all) have ended; returns their names in the order of their ends."""
        ended: list[str] = []
        for _ in range(max_steps):
            if not self.scheduler.requests or (until is not None and len(ended) >= until):
                return ended
            left = [n for n, outs in self.outputs.items() if "#" not in n and not _has_ended(outs)]
            self.step()
            ended += [n for n in left if _has_ended(self.outputs[n])]
        raise AssertionError(f"not finished after {max_steps} steps: {self.state()}")

    def _next(self, request: Any) -> list[int]:
        if "#fill" in request.request_id and request.is_prefill_chunk:
            return []
        try:
            return super()._next(request)
        except KeyError:  # a context of which no script knows: some text
            self._writing[request.request_id] = request.num_prompt_tokens, (*request.prompt_token_ids[-3:],)
            return super()._next(request)
        except IndexError:
            return [self._eos]

    def state(self) -> list[tuple[str, str, int]]:
        """Of each request its status and the tokens that have KV."""
        requests = self.scheduler.requests.values()
        return [(r.request_id, r.status.name, r.num_computed_tokens) for r in requests]


def _has_ended(outputs: list[EngineCoreOutput]) -> bool:
    return any(o.finished for o in outputs)
