"""The real scheduler without a model, driven by hand: a test says what is written, and what happens when.

After each call the engine's invariants are checked, and in each step the KV that is read (``kv_oracle.py``).
"""

from __future__ import annotations

from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import torch
from msgspec import to_builtins
from msgspec.structs import replace
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from forkjoin_bench.vllm_seam.fed import runner_output
from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.request.compiled import compile_options
from forkjoin_scheduler.request.given import Given
from forkjoin_scheduler.request.options import CompiledOptions, parse_options
from forkjoin_scheduler.settings import COMPILED, KEY, Settings
from forkjoin_scheduler.vllm_seam.compat import WORKER
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_scheduler.vllm_seam.live import LiveFamily
from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer
from tests.engine.copies import Copies, Work, speculation
from tests.engine.invariants import check_invariants
from tests.engine.kv_oracle import KVOracle
from tests.engine.stand_in import logprobs_of

END = "<|end|>"


class ByHand:
    """A scheduler, its requests, and what each of them is told to write.

    A request that has nothing to write writes ``filler``. ``window``: the sliding window of all layers.
    ``max_drafts``: so many tokens of a request are drafted for each step, all of them right; what it is told
    to write only then, no draft knows. If ``draft_from`` is family, the drafter itself finds none.
    ``policies``: the class paths of the user's own, by their settings. ``max_loras``: so many adapters, of rank 8,
    in a step. ``min_left``: the dialect's.
    """

    def __init__(
        self,
        dialect: Dialect,
        model: Path,
        *,
        is_async: bool = False,
        block_size: int = 16,
        num_blocks: int = 200,
        window: int | None = None,
        filler: str = "x",
        reasoning_parser: str = "",
        max_drafts: int = 0,
        draft_from: str = "drafter",
        policies: dict[str, str] | None = None,
        max_loras: int = 0,
        min_left: int = 0,
    ) -> None:
        dialect = dialect.model_copy(update={"min_room": 1, "min_left": min_left, "reserve": 0})
        settings = Settings.of(dialect, {}, draft_from=draft_from, **(policies or {}))
        args = EngineArgs(
            model=str(model),
            max_model_len=1024,
            max_num_seqs=8,
            max_num_batched_tokens=2048,
            enforce_eager=True,
            additional_config={KEY: settings.model_dump(mode="json")},
            worker_cls=WORKER if dialect.join.moves_kv else "auto",
            reasoning_parser=reasoning_parser,
            speculative_config=speculation(max_drafts),
            **({"enable_lora": True, "max_lora_rank": 8, "max_loras": max_loras} if max_loras else {}),
        )
        config = args.create_engine_config()
        config.cache_config.block_size, config.cache_config.num_gpu_blocks = block_size, num_blocks
        config.scheduler_config.async_scheduling = self._is_async = is_async
        heads: dict[str, Any] = {"num_kv_heads": 6, "head_size": 32, "dtype": torch.bfloat16}
        spec = (
            FullAttentionSpec(block_size=block_size, **heads)
            if window is None
            else SlidingWindowSpec(block_size=block_size, sliding_window=window, **heads)
        )
        kv_cache = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        hash_ = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_)
        self.scheduler = ForkJoinScheduler(
            config, kv_cache, StructuredOutputManager(config), block_size=block_size
        )
        self.tokenizer = EngineTokenizer.from_model_config(config.model_config)
        self.oracle = KVOracle(self.scheduler, window)
        self.copies = Copies(self.scheduler, max_drafts if draft_from == "drafter" else 0)
        self._hasher = get_request_block_hasher(block_size, hash_)
        (self.filler_id,) = self.tokenizer.encode(filler)
        self._writing: dict[str, deque[int]] = defaultdict(deque)
        self._in_flight: deque[tuple[Any, Any]] = deque()
        #: Where families may fail.
        self.allowed_errors: set[str] = set()
        self.num_steps = 0
        #: What the front end has been sent.
        self.outputs: list[EngineCoreOutput] = []

    # ---- what a test does ------------------------------------------------------------------

    def compiled(self, asked: dict[str, Any]) -> CompiledOptions:
        """What the engine gets of the field ``forkjoin`` of a request."""
        return compile_options(parse_options(asked), self.tokenizer.encode, self.constrain)

    def add(
        self,
        request_id: str,
        prompt: str,
        lora: LoRARequest | None = None,
        given: Given | None = None,
        **params: Any,
    ) -> None:
        """``given``: what of an earlier answer it goes on from."""
        asked = replace(self.compiled(params.pop("forkjoin", {})), given=given)
        sampling = SamplingParams(
            **({"temperature": 0.0, "max_tokens": 500} | params),
            extra_args={COMPILED: to_builtins(asked)},
        )
        sampling.update_from_generation_config({}, eos_token_id=self.tokenizer.token_id(END))
        request = Request(
            request_id=request_id,
            prompt_token_ids=self.tokenizer.encode(prompt),
            sampling_params=sampling,
            pooling_params=None,
            lora_request=lora,
            block_hasher=self._hasher,
            arrival_time=len(self.scheduler.requests),
        )
        self.enqueue(request)

    def constrain(self, response_format: dict[str, Any]) -> dict[str, Any] | None:
        raise NotImplementedError("expected branches without a response_format")

    def enqueue(self, request: Request) -> None:
        self.scheduler.add_request(request)

    def say(self, request_id: str, text: str) -> None:
        """Let a request write ``text`` next."""
        self._writing[request_id].extend(self.tokenizer.encode(text))

    def step(self, num: int = 1) -> None:
        """So many steps; with async scheduling one stays in flight."""
        for _ in range(num):
            self.schedule()
            while len(self._in_flight) > self._is_async:
                self.update()

    def steps_until(self, ready: Any, limit: int = 300) -> None:
        for _ in range(limit):
            if ready():
                return
            self.step()
        raise AssertionError("the state was not reached")

    def schedule(self) -> None:
        output = self.scheduler.schedule()
        self.num_steps += 1
        check_invariants(self.scheduler)
        works = self.begin(output)
        sampled = {i: self._sample(self.request(i), work) for i, work in works.items()}
        rows = [[(i, i) for i in token_ids or [0]] for token_ids in sampled.values()]
        wants_logprobs = any(self.request(i).sampling_params.num_logprobs is not None for i in works)
        of_model = runner_output(sampled, logprobs_of(rows) if wants_logprobs else None)
        self._in_flight.append((output, of_model))

    def begin(self, output: Any) -> dict[str, Work]:
        """Compute the step ``output``, and check the KV that it reads; what it is for each request."""
        self.copies.step(output)
        works = {i: self.copies.work(output, self.request(i)) for i in output.num_scheduled_tokens}
        self.oracle.execute(output, works)
        return works

    def update(self) -> None:
        """End the oldest step in flight."""
        output, of_model = self._in_flight.popleft()
        for outputs in self.scheduler.update_from_output(output, of_model).values():
            self.outputs += outputs.outputs
        if not self._is_async:
            self.scheduler.update_draft_token_ids(self.copies.drafted(of_model.req_ids))
        failed = {event["where"] for event in self.events("internal_error")}
        assert failed <= self.allowed_errors, "a family failed: see the log"
        check_invariants(self.scheduler)

    def preempt(self, request_id: str) -> None:
        """As vLLM does for want of blocks."""
        request = self.request(request_id)
        self.scheduler.running.remove(request)
        self.scheduler._preempt_request(request, 0.0)

    def evict(self) -> None:
        """Take the blocks of the only family back, as if nothing could run for want of blocks."""
        self.scheduler._eviction.evict(self.live())
        check_invariants(self.scheduler)

    def pause(self) -> None:
        """Let no request run, though what is due between steps is done."""
        self.scheduler.set_pause_state(PauseState.PAUSED_ALL)

    def go_on(self) -> None:
        self.scheduler.set_pause_state(PauseState.UNPAUSED)

    def finish(self) -> None:
        """Run to the end of all requests. Raises AssertionError if a block or a queue entry stays."""
        self.steps_until(lambda: not self.scheduler.requests)
        self.schedule()
        while self._in_flight:
            self.update()
        pool = self.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1

    # ---- what it sees ----------------------------------------------------------------------

    def request(self, request_id: str) -> Request:
        return self.scheduler.requests[request_id]

    def decodes(self, request_id: str) -> bool:
        """Whether a request has written at least one token behind its prompt and runs."""
        request = self.scheduler.requests.get(request_id)
        runs = request is not None and request.status == RequestStatus.RUNNING
        return runs and request.num_output_tokens > 0

    def live(self) -> LiveFamily:
        (live,) = self.scheduler._core.live.values()
        return live

    def text(self, request_id: str) -> str:
        """What the front end has been sent of a request."""
        ids = [i for o in self.outputs if o.request_id == request_id for i in o.new_token_ids]
        return self.tokenizer.decode(ids)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of this ``kind`` that the front end has been sent, as they are on the wire."""
        told = [wire.unpack(o) for o in self.outputs]
        return [to_builtins(e) for t in told if t is not None for e in t.events if e.kind == kind]

    def _sample(self, request: Request, work: Work) -> list[int]:
        if request.is_prefill_chunk:
            return []
        writing, at = self._writing[request.request_id], len(work.tokens) - work.num_drafts

        def next_token(place: int) -> int:
            behind = place - at
            return writing[behind] if behind < len(writing) else self.filler_id

        sampled = self.copies.sample(request, work, next_token)
        for _ in range(min(len(sampled), len(writing))):
            writing.popleft()
        return sampled
