"""vLLM's ``LLM`` whose requests fork and join, and whose answers have their trees."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import msgspec
import vllm
from vllm import RequestOutput, SamplingParams
from vllm.entrypoints.generate.beam_search.utils import BeamSearchOutput
from vllm.outputs import CompletionOutput

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.compiled import check_and_compile
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.settings import COMPILED, KEY, TREE, Settings
from forkjoin_scheduler.vllm_seam.compat import worker_of
from forkjoin_scheduler.vllm_seam.threads.sampling import asks_for_prompt
from forkjoin_server.flag_values import dest_of
from forkjoin_server.request.continuing import check_prompt, continued
from forkjoin_server.request.handover import NO_FORKS, budget_of, width_in_answers
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.start.dialect_choice import choose
from forkjoin_server.start.flags import SCHEDULER
from forkjoin_server.trees import TreeBuilder, tree_of
from forkjoin_server.vllm_seam.offline.tree_output import TreeOutputProcessor
from forkjoin_server.vllm_seam.request.trees import engine_of

#: What one request asks of fork/join, or each of them in its order; the field ``forkjoin`` of the HTTP API.
Asked = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM(vllm.LLM):
    """vLLM's ``LLM``, which forks and joins. Its answers are vLLM's, each with a ``tree``.

    Example::

        llm = LLM(dialect="threadweaver")
        outputs = llm.chat([[{"role": "user", "content": "a=482*731, b=9047*36"}]], SamplingParams(seed=1))
        answer = outputs[0].outputs[0]
        print(answer.text, answer.tree.draw())
    """

    #: Whether the requests that are added may fork.
    _may_fork = True

    def __init__(
        self,
        model: str | Path = EMBEDDED_MODEL,
        *,
        dialect: str | Dialect | None = None,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Start an engine.

        Args:
            model: As vLLM takes it; by default the embedded one.
            dialect: Its name, file or value. By default the one that fits the model's files.
            settings: Limits and scheduling of fork/join, by the names of the flags of ``forkjoin serve``:
                ``{"max_threads_per_fork": 8}``.
            options: vLLM's own.

        Raises:
            DialectError: The dialect is unknown or malformed.
            ValidationError: Of pydantic; a setting is unknown or wrong.
        """
        if dialect is None:
            dialect = _chosen(str(model), options)
        if not isinstance(dialect, Dialect):
            dialect = load(dialect)
        given = dict(settings or {})
        limits = {name: given.pop(name) for name in Limits.model_fields.keys() & given.keys()}
        self._settings = Settings.of(dialect, limits, **given)
        options["additional_config"] = {
            **options.get("additional_config", {}),
            KEY: self._settings.model_dump(mode="json"),
        }
        if worker := worker_of(self._settings):
            options.setdefault("worker_cls", worker)
        super().__init__(model=str(model), scheduler_cls=SCHEDULER, **options)
        processor = TreeOutputProcessor.in_place_of(self.llm_engine.output_processor)
        self.llm_engine.output_processor = self._processor = processor

    def generate(
        self, prompts: Any, sampling_params: Params = None, *, forkjoin: Asked = None, **options: Any
    ) -> list[RequestOutput]:
        """As vLLM's ``generate``. ``forkjoin``: what all requests ask of fork/join, or what each does.

        Each of ``outputs`` of a RequestOutput has a ``tree`` (``forkjoin.Tree``), with logprobs. Requests
        that an interrupted call or ``enqueue`` has left end, too, but only those of this call are returned.
        Raises BadRequestOptions for what can't be asked.
        """
        single = isinstance(prompts, (str, Mapping)) or (bool(prompts) and isinstance(prompts[0], int))
        params = self._params(sampling_params, forkjoin, 1 if single else len(prompts))
        first = self.request_counter.counter
        return self._with_trees(super().generate(prompts, params, **options), params, first)

    def chat(
        self,
        messages: Any,
        sampling_params: Params = None,
        *args: Any,
        forkjoin: Asked = None,
        **options: Any,
    ) -> list[RequestOutput]:
        """As vLLM's ``chat``; for the rest see ``generate``."""
        single = bool(messages) and not isinstance(messages[0], Sequence)
        params = self._params(sampling_params, forkjoin, 1 if single else len(messages))
        first = self.request_counter.counter
        return self._with_trees(super().chat(messages, params, *args, **options), params, first)

    def beam_search(self, *args: Any, **options: Any) -> list[BeamSearchOutput]:
        """As vLLM's ``beam_search``. Nothing forks: each of its steps is a request."""
        self._may_fork = False
        try:
            return super().beam_search(*args, **options)
        finally:
            self._may_fork = True

    def _params(self, given: Params, forkjoin: Asked, num: int) -> list[SamplingParams]:
        """The parameters of each of ``num`` requests, with what it asks of fork/join.

        Raises ValueError unless there are as many of both.
        """
        if given is None:
            given = self.get_default_sampling_params()
        params = [given] * num if isinstance(given, SamplingParams) else list(given)
        asked = [forkjoin] * num if forkjoin is None or isinstance(forkjoin, Mapping) else list(forkjoin)
        for name, values in (("sampling_params", params), ("forkjoin", asked)):
            if len(values) != num:
                raise ValueError(f"{name}: expected one for all requests or {num}, got {len(values)}")
        return [self._with_options(p, fields) for p, fields in zip(params, asked, strict=True)]

    def _with_options(self, params: SamplingParams, asked: Mapping[str, Any] | None) -> SamplingParams:
        params = copy(params)
        extra = dict(params.extra_args or {}) | {TREE: True}
        if asked is not None:
            tokenizer, fields = self.get_tokenizer(), dict(asked)
            tree = fields.pop("continues_tree", None)
            options = check_and_compile(
                fields, self._settings, lambda text: tokenizer.encode(text, add_special_tokens=False)
            )
            if tree is not None:
                if asks_for_prompt(params):
                    raise BadRequestOptions(
                        "forkjoin.continues_tree: expected a request that asks for no "
                        "log-probabilities of its prompt: drop prompt_logprobs"
                    )
                options = self._continued(tree, options)
            extra[COMPILED] = msgspec.to_builtins(options)
        params.extra_args = extra
        if params.logprobs is None:
            params.logprobs = 0  # of the sampled token alone
        return params

    def _continued(self, tree: Any, options: CompiledOptions) -> CompiledOptions:
        """``options`` of a request that goes on from ``tree``. Raises BadRequestOptions if it can't."""
        dialect = self._settings.dialect
        assert dialect is not None
        engine = engine_of(self.model_config, self.get_tokenizer(), dialect)
        return continued(tree, options, self._settings, engine, self.model_config.get_vocab_size())

    def _add_request(self, prompt: Any, params: Any, *args: Any, **options: Any) -> str:
        if not self._may_fork:
            params.extra_args = (params.extra_args or {}) | {COMPILED: NO_FORKS}
        asked = (getattr(params, "extra_args", None) or {}).get(COMPILED)
        if asked is not None and "given" in asked:
            compiled = msgspec.convert(asked, CompiledOptions)
            assert compiled.given is not None
            most = self.model_config.max_model_len if params.max_tokens is None else params.max_tokens
            width = width_in_answers(compiled, self._settings)
            most = budget_of(compiled, self._settings.limits, width, most)
            check_prompt(compiled.given, prompt.get("prompt_token_ids") or (), most)
        return str(super()._add_request(prompt, params, *args, **options))

    def _with_trees(
        self, outputs: list[RequestOutput], params: Sequence[SamplingParams], first: int
    ) -> list[RequestOutput]:
        """Those of ``outputs`` whose requests are from number ``first`` on, each with its trees."""
        own = [output for output in outputs if int(output.request_id) >= first]
        for output, asked in zip(own, params, strict=True):
            for answer in output.outputs:
                builder = self._processor.builders.pop((output.request_id, answer.index), None)
                setattr(answer, "tree", _tree(output, answer, builder, asked))  # noqa: B010
        self._processor.builders.clear()
        return own


def _tree(
    output: RequestOutput, answer: CompletionOutput, builder: TreeBuilder | None, asked: SamplingParams
) -> Any:
    seed = None if asked.seed is None else asked.seed + answer.index  # as vLLM counts those of n
    return tree_of(
        builder,
        output.prompt_token_ids or [],
        answer.token_ids,
        answer.logprobs,
        asked.logprobs or 0,
        seed,
        answer.finish_reason,
        answer.weight_versions,
    )


def _chosen(model: str, options: Mapping[str, Any]) -> str:
    """The dialect that ``forkjoin serve`` chooses for this model."""
    names = ("tokenizer", "revision", "tokenizer_revision", "chat_template")
    args = Namespace(model_tag=None, model=model, **{name: options.get(name) for name in names})
    dest = dest_of("dialect")
    setattr(args, dest, None)
    choose(args)
    return str(getattr(args, dest))
