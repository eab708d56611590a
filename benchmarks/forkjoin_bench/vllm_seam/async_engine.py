"""vLLM's AsyncLLM in this process, on token ids: no HTTP, no text."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from forkjoin_bench.systems.base import Answer
from forkjoin_bench.systems.records import RecordReader
from forkjoin_bench.vllm_seam.serving import RECORD_VARIABLE, REPLAY, STOCK_SCHEDULER
from forkjoin_scheduler.dialects.tokenizer import Tokenizer


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    """Add ``env`` to this process's environment, for so long only: servers that start later inherit it."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class InProcess:
    """The engine."""

    start_s = cpu_s = None

    def __init__(self, name: str, options: dict[str, Any], env: dict[str, str], folder: Path) -> None:
        self._options = options
        self._records = RecordReader(folder / f"{name}.steps.jsonl")
        self._env = env | {
            RECORD_VARIABLE: str(self._records.path),
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        self.llm: Any = None
        self.take_steps = self._records.take

    @property
    def num_blocks(self) -> int:
        return self._records.num_blocks

    async def start(self) -> None:
        self._records.path.unlink(missing_ok=True)
        # Its engine core is a process that takes over this one's environment, then and there.
        with _environment(self._env):
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            args = AsyncEngineArgs(scheduler_cls=STOCK_SCHEDULER, logits_processors=[REPLAY], **self._options)
            self.llm = AsyncLLM.from_engine_args(args)

    async def stop(self) -> None:
        if self.llm is not None:
            self.llm.shutdown()
            self.llm = None
            gc.collect()  # at the interpreter's end its __del__ would fail

    async def reset_prefix_cache(self) -> None:
        if not await self.llm.reset_prefix_cache():
            raise RuntimeError("in process: blocks are still held")


class IdsCompleter:
    """Ids in, ids out."""

    def __init__(self, engine: InProcess, tokenizer: Tokenizer, token_ids: Mapping[str, int]) -> None:
        self.engine = engine
        self._tokenizer = tokenizer
        self._token_ids = token_ids
        self._num_asked = count()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, text: list[int]) -> str:
        return self._tokenizer.decode(text)

    async def complete(
        self,
        context: list[int],
        max_tokens: int,
        stops: Sequence[str],
        seed: int | None,
        answer: Answer | None,
    ) -> list[int]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,
            seed=seed,
            max_tokens=max_tokens,
            stop_token_ids=[self._token_ids[s] for s in stops],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY if answer is None else RequestOutputKind.DELTA,
        )
        request_id = f"bench-{next(self._num_asked)}"
        token_ids: list[int] = []
        reason: int | str | None = None
        async for output in self.engine.llm.generate(
            TokensPrompt(prompt_token_ids=context), params, request_id
        ):
            done = output.outputs[0]
            token_ids += done.token_ids
            reason = done.stop_reason
            if answer is not None:
                answer.arrivals.append(time.monotonic())
        # A tag that stops is the reason; the end of sequence is none.
        return token_ids if reason is not None else token_ids[:-1]
