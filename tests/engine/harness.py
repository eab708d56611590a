"""A real engine in this process, a client-side reference, and scripted output."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.dialects.patterns import fill
from forkjoin_scheduler.families.family import Family
from forkjoin_scheduler.families.fork import ForkPlan, plan_fork
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.joins.joined import plan_join
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_scheduler.vllm_seam.compat import WORKER
from forkjoin_scheduler.vllm_seam.tokenizer import EngineTokenizer
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from tests.engine.platform import force_async

THREADWEAVER = load("threadweaver")

#: Whether engines schedule asynchronously, as they do on GPUs.
IS_ASYNC = bool(os.environ.get("FORKJOIN_TEST_ASYNC"))
if IS_ASYNC:
    force_async()

#: All engines of the process: vLLM's teardown of one takes state with it that the others need. So they
#: stay, with few KV blocks each, for their memory adds up.
_ENGINES: list[Any] = []


class Script(AdapterLogitsProcessor):
    """Forces tokens: ``extra_args["script"]`` is [[prompt suffix ids, token ids to write], …].

    The entry with the longest matching suffix applies, behind its end comes end-of-sequence; where
    none matches, or the entry says null, the model decides.
    """

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., torch.Tensor] | None:
        script = (params.extra_args or {}).get("script")
        if script is None:
            return None
        eos = (params.extra_args or {})["eos"]

        def force(prompt_ids: list[int], output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            fitting = [e for e in script if list(prompt_ids)[len(prompt_ids) - len(e[0]) :] == e[0]]
            if not fitting:
                return logits
            tokens = max(fitting, key=lambda e: len(e[0]))[1]
            if tokens is None:
                return logits
            position = len(output_ids)
            wanted = tokens[position] if position < len(tokens) else eos
            logits[:] = float("-inf")
            logits[wanted] = 0.0
            return logits

        return force


@dataclass
class Answer:
    """What a request came to."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[Any] = field(default_factory=list)


class Engine:
    """An in-process vLLM engine on the embedded model, stepped by hand."""

    def __init__(
        self,
        dialect: Dialect = THREADWEAVER,
        model: Path = EMBEDDED_MODEL,
        *,
        join_ahead_tokens: int = 0,
        limits: dict[str, int] | None = None,
        policies: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        """``policies``: class paths, by the names of the settings that bring them."""
        settings = Settings.of(dialect, limits or {}, join_ahead_tokens=join_ahead_tokens, **(policies or {}))
        if dialect.join.moves_kv:
            options.setdefault("worker_cls", WORKER)
        defaults: dict[str, Any] = {
            "enforce_eager": True,
            "dtype": "float32",
            "block_size": 32,
            "max_model_len": 4096,
            "num_gpu_blocks_override": 1500,
            "logits_processors": [Script],
        }
        self.llm = LLM(
            model=str(model),
            scheduler_cls="forkjoin_scheduler.vllm_seam.scheduler.ForkJoinScheduler",
            additional_config={KEY: settings.model_dump(mode="json")},
            disable_log_stats=False,
            **(defaults | options),
        )
        self.dialect = dialect
        self.core = self.llm.llm_engine
        self.scheduler: Any = self.core.engine_core.engine_core.scheduler
        self.tokenizer = EngineTokenizer(self.llm.get_tokenizer())
        self.eos = self.tokenizer.token_id("<|end|>")
        self.steps: list[dict[str, int]] = []
        #: The adapter that requests are sent with.
        self.lora: LoRARequest | None = None
        #: Tokens of a context without KV when it is sampled from: the last, but for async scheduling.
        self.num_late = 0 if self.core.vllm_config.scheduler_config.async_scheduling else 1
        self._ids = count()
        self._answers: dict[str, Answer] = {}
        self._record()
        _ENGINES.append(self)
        self.baseline = self.snapshot()

    def _record(self) -> None:
        """Note what each step of the scheduler computes, by request id."""
        schedule, steps = self.scheduler.schedule, self.steps

        def recorded(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            steps.append(dict(output.num_scheduled_tokens))
            return output

        self.scheduler.schedule = recorded

    @contextmanager
    def speaking(self, dialect: Dialect) -> Iterator[Engine]:
        """Speak another dialect for a while, in the tokens that the model has."""
        scheduler = self.scheduler
        before = self.dialect, scheduler._core.settings, scheduler._core.bound_dialect
        self.dialect = dialect
        scheduler._core.settings = Settings.of(dialect, {}, join_ahead_tokens=before[1].join_ahead_tokens)
        scheduler._core.bound_dialect = BoundDialect.bind(dialect, self.tokenizer)
        try:
            yield self
        finally:
            self.dialect, scheduler._core.settings, scheduler._core.bound_dialect = before

    def snapshot(self) -> dict[str, int]:
        """What must be the same before and after any traffic."""
        return snapshot(self.scheduler)

    def prompt(self, text: str) -> list[int]:
        return self.tokenizer.encode(f"<|user|>{text}<|assistant|>")

    def params(self, **options: Any) -> SamplingParams:
        extra = {KEY: options.pop("forkjoin", {}), **options.pop("extra_args", {})}
        return SamplingParams(**({"temperature": 0.0, "max_tokens": 3000, "extra_args": extra} | options))

    def scripted(
        self,
        root: str,
        threads: dict[str, str],
        after: str | None = "",
        *,
        behind: dict[str, str | None] | None = None,
        ending: str = "</Thread>\n",
        **options: Any,
    ) -> SamplingParams:
        """Parameters that make the model write ``root``, then each thread its text, then ``after``.

        Texts stand for tokens; a text without its end tag is followed by end-of-sequence, and None
        means that the model decides. ``ending``: what the context ends with at the join; ``behind``:
        what it writes behind other joins, by the text that these end with.
        """
        encode = self.tokenizer.encode
        script: list[list[Any]] = [[[], encode(root)]]
        for number, text in threads.items():
            script.append([encode(fill(self.dialect.thread.header, n=number)), encode(text)])
        for end, behind_it in {ending: after, **(behind or {})}.items():
            script.append([encode(end), None if behind_it is None else encode(behind_it)])
        return self.params(extra_args={"script": script, "eos": self.eos}, **options)

    def add(self, prompt: Any, params: SamplingParams) -> str:
        """Add a request; its ``prompt`` is a list of tokens, or what vLLM makes of tokens and images."""
        request_id = f"r{next(self._ids)}"
        given = TokensPrompt(prompt_token_ids=prompt) if isinstance(prompt, list) else prompt
        self.core.add_request(request_id, given, params, lora_request=self.lora)
        return request_id

    def run(self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]) -> list[Answer]:
        """Run all of ``prompts`` together to their ends."""
        each = params if isinstance(params, list) else [params] * len(prompts)
        ids = [self.add(prompt, p) for prompt, p in zip(prompts, each, strict=True)]
        answers = self.drain()
        return [answers[i] for i in ids]

    def drain(self, max_steps: int = 20_000) -> dict[str, Answer]:
        """Step until nothing is left; raises AssertionError if that takes for ever."""
        for _ in range(max_steps):
            if not self.core.has_unfinished_requests():
                break
            self.step()
        else:
            raise AssertionError(f"not finished after {max_steps} steps: {self.snapshot()}")
        # One more step tells the worker of the last requests that ended.
        self.core.step()
        answers, self._answers = self._answers, {}
        return answers

    def step(self) -> None:
        """One step; what requests have come to by then, ``drain`` returns."""
        for output in self.core.step():
            done = output.outputs[0]
            self._answers[output.request_id] = Answer(
                list(done.token_ids), done.text, done.finish_reason, done.stop_reason, done.logprobs or []
            )

    def prompt_logprobs(self, request_id: str) -> list[Any]:
        """Run the only request to its end; its prompt's logprobs, one dict a token."""
        found: list[Any] = []
        while self.core.has_unfinished_requests():
            for output in self.core.step():
                assert output.request_id == request_id
                found = output.prompt_logprobs or found
        return found

    def step_until(self, ready: Callable[[], bool], max_steps: int = 5000) -> None:
        for _ in range(max_steps):
            if ready():
                return
            self.core.step()
        raise AssertionError("the state was not reached")

    def reference(
        self, prompts: list[list[int]], *, cancelled: dict[int, int] | None = None, **options: Any
    ) -> list[list[int]]:
        """The same protocol as a client would run it, on plain requests with the same ``options``.

        ``cancelled``: after how many of its tokens a thread is cancelled, by its index in each family.
        """
        plain = {"enabled": False}
        trigger = self.tokenizer.token_id(self.dialect.trigger)
        end = self.tokenizer.token_id(self.dialect.thread.end)
        openings = self.run(prompts, self.params(forkjoin=plain, stop_token_ids=[trigger], **options))
        results = [list(a.token_ids) for a in openings]
        forked = [i for i, a in enumerate(openings) if a.stop_reason == trigger]
        families: dict[int, Family] = {}
        thread_prompts, owners = [], []
        for i in forked:
            context = [*prompts[i], *results[i]]
            plan = plan_fork(self.dialect, self.dialect.limits, context, self.tokenizer)
            assert isinstance(plan, ForkPlan)
            families[i] = Family(str(i), self.dialect.limits)
            for thread in families[i].fork(families[i].root, plan):
                assert thread.plan is not None
                thread_prompts.append([*context, *thread.plan.header_ids])
                owners.append((i, thread))
        texts = self.run(thread_prompts, self.params(forkjoin=plain, stop_token_ids=[end], **options))
        for (i, thread), text in zip(owners, texts, strict=True):
            num_tokens = (cancelled or {}).get(families[i].threads.index(thread))
            families[i].generated(thread, text.token_ids[:num_tokens])
            families[i].end(thread, _end(text, end) if num_tokens is None else ThreadEnd.CLIENT_CANCELLED)
        joined = []
        for i in forked:
            results[i] += plan_join(self.dialect, families[i].root.threads, self.tokenizer).token_ids
            joined.append([*prompts[i], *results[i]])
        closings = self.run(joined, self.params(forkjoin=plain, **options))
        for i, closing in zip(forked, closings, strict=True):
            results[i] += closing.token_ids
        return results


def snapshot(scheduler: Any) -> dict[str, int]:
    """What of ``scheduler`` must be the same before and after any traffic."""
    pool = scheduler.kv_cache_manager.block_pool
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    placing = scheduler._placing
    return {
        "free_blocks": pool.get_num_free_blocks(),
        "referenced": sum(b.ref_cnt > 0 for b in pool.blocks if not b.is_null),
        "owners": sum(len(m.req_to_blocks) for m in managers),
        "requests": len(scheduler.requests),
        "queued": len(scheduler.running) + len(scheduler.waiting) + len(scheduler.kv_holding_waiting),
        "parked": scheduler.num_waiting_for_streaming_input,
        "families": len(scheduler._core.live) + len(scheduler._core.threads) + len(scheduler._jobs.prefills),
        "stitches": sum(map(len, (placing.to_stitch, placing.offsets, placing.paths))),
    }


def _end(answer: Answer, end_id: int | None) -> ThreadEnd:
    assert answer.stop_reason == end_id, "the reference handles well-formed threads only"
    return ThreadEnd.STOP


__all__ = ["THREADWEAVER", "Answer", "Engine", "Script", "snapshot"]
