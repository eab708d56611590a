"""Hands to the engine what a request asks of fork/join: beside vLLM's parameters, never among a client's.

vLLM's handlers know nothing of it. So the middleware leaves it in a context variable of the task that serves
the request, and where vLLM renders a prompt and calls the engine, it is checked against that prompt and
attached. Whatever else calls the engine does not fork. What a client has put there itself is refused by
``field.py``, and never gets past here.

Patch: ``process_for_engine_async`` of the engine client's renderer, and the client's ``generate``.
Symptom without it: vLLM has no place for options but ``vllm_xargs``, which clients write themselves, and
nothing of ours is asked before an answer's status is sent.
Upstream: there is no hook between the prompt and the engine. Remove when there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from typing import Any

import msgspec

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.excerpt import cut, excerpt
from forkjoin_scheduler.request import visits
from forkjoin_scheduler.request.compiled import Room, check_chars, check_room, compile_options
from forkjoin_scheduler.request.options import CompiledOptions, RequestOptions
from forkjoin_scheduler.settings import COMPILED, KEY, Settings
from forkjoin_server.answer.trees import Trees, with_logprobs
from forkjoin_server.request.continuing import check_prompt, continued
from forkjoin_server.request.shape import MAX_BITS
from forkjoin_server.request.structured import block_reason
from forkjoin_server.vllm_seam.request.formats import constraint_of
from forkjoin_server.vllm_seam.request.reasoning import has_reasoning_parser, why_not_reasoning
from forkjoin_server.vllm_seam.request.trees import engine_of

DEFAULTS = Settings()
#: What the engine gets of a request that is not to fork: a step of a beam search, a text to score.
NO_FORKS = {"enabled": False}


@dataclass
class Asked:
    """What a body asks of fork/join, for each answer to it."""

    options: CompiledOptions
    #: What all answers to it may generate; None: no limit.
    max_tokens: int | None = None
    num_tokens: int = 0
    #: Into how many answers its fork goes, each with a budget of its own.
    width: int = 1
    #: Those of the server, where the request has none of its own.
    limits: Limits = field(default_factory=Limits)
    #: Gathers the trees of its answers, if it wants them, which may hold ``max_tree_tokens``.
    trees: Trees | None = None
    max_tree_tokens: int = 0
    num_tree_tokens: int = 0

    def charge(self, num_answers: int, max_tokens: int | None, max_model_len: int) -> None:
        """Count what another prompt's answers may cost at most.

        Raises BadRequestOptions if all together are over the limit.
        """
        self.num_tokens += num_answers * self.most_tokens(max_tokens, max_model_len)
        if self.max_tokens is not None and self.num_tokens > self.max_tokens:
            raise BadRequestOptions(
                f"expected at most {self.max_tokens} tokens over all answers to a request (the server's "
                f"--max-request-tokens), got up to {self.num_tokens}: lower max_tokens, which is the rest of "
                "the context where none is given, n, best_of or the number of prompts"
            )

    def most_tokens(self, max_tokens: int | None, max_model_len: int) -> int:
        """What one answer may cost at most, as ``live.py`` gives it its budget."""
        each = max_model_len if max_tokens is None else max_tokens
        return budget_of(self.options, self.limits, self.width, each)

    def charge_trees(self, num_answers: int, num_prompt_tokens: int, num_top: int) -> None:
        """Count the prompt of what was charged last, which each of its answers' trees repeats.

        ``num_top``: likeliest tokens that are told beside each generated one. Raises BadRequestOptions if all
        trees together may be too large.
        """
        num_prompts = 1 + len(self.options.rounds or ())  # each round asks again
        self.num_tree_tokens += num_answers * num_prompts * num_prompt_tokens
        if (num := self.num_tree_tokens + self.num_tokens * (1 + num_top)) > self.max_tree_tokens:
            raise BadRequestOptions(
                f"forkjoin.return_tree: expected at most {self.max_tree_tokens} tokens over all answers (the "
                f"server's --max-tree-tokens), each with its prompt, and with {num_top} likeliest ones "
                f"beside each generated token, got up to {num}: lower max_tokens, which is the rest of the "
                "context where none is given, n, best_of or the number of logprobs, or shorten the prompt"
            )


_ASKED: ContextVar[Asked | None] = ContextVar("forkjoin_asked", default=None)


@contextmanager
def handing_over(asked: Asked) -> Iterator[None]:
    """What is done inside, and the tasks that it starts, calls the engine with ``asked``."""
    before = _ASKED.set(asked)
    try:
        yield
    finally:
        _ASKED.reset(before)


def budget_of(options: CompiledOptions, limits: Limits, width: int, max_tokens: int) -> int:
    """Tokens that one answer of ``width`` times ``max_tokens`` may generate; ``limits``: the server's."""
    cap = options.limits(limits).max_total_tokens
    return max_tokens * width if cap is None else min(max_tokens * width, cap)


def width_in_answers(options: CompiledOptions, settings: Settings) -> int:
    """Into how many answers a request's fork goes: each thread of a vote is one."""
    if options.forks_at_prompt:
        return options.best_of or 1
    dialect = settings.dialect
    if dialect is None or not options.enabled:
        return 1
    if options.rounds is not None:
        dialect = dialect.with_rounds(options.rounds)
    return dialect.num_answers(options.limits(settings.limits))


async def compiled(options: RequestOptions, client: Any, settings: Settings = DEFAULTS) -> CompiledOptions:
    """``options`` with their texts as tokens, made where ``client`` of vLLM tokenises prompts.

    Raises BadRequestOptions naming a text that no context holds; that takes no tokenising. Raises it for a
    tree that this server can't go on from.
    """
    made = await _without_tree(options, client)
    if options.continues_tree is None or settings.dialect is None:
        return made
    in_thread = asyncio.get_running_loop().run_in_executor
    renderer, model_config = client.renderer, client.model_config

    def with_tree() -> CompiledOptions:
        assert settings.dialect is not None
        engine = engine_of(model_config, renderer.get_tokenizer(), settings.dialect)
        vocab_size = model_config.get_vocab_size()
        return continued(options.continues_tree, made, settings, engine, vocab_size)

    return await in_thread(renderer._executor, with_tree)


async def _without_tree(options: RequestOptions, client: Any) -> CompiledOptions:
    if options.branches is None:
        return compile_options(options, _no_text)
    renderer = client.renderer
    tokenizer = renderer.get_tokenizer()
    check_chars(options, Room(client.model_config.max_model_len, tokenizer.max_chars_per_token))
    encode = partial(tokenizer.encode, add_special_tokens=False)
    constrain = partial(constraint_of, client)
    in_thread = asyncio.get_running_loop().run_in_executor
    return await in_thread(renderer._executor, compile_options, options, encode, constrain)


def _no_text(text: str) -> list[int]:
    raise NotImplementedError(f"expected a request without texts, got {len(text)} characters")


def install(client: Any) -> None:
    """Let ``client``, vLLM's engine client, call its engine with what requests ask of fork/join."""
    renderer, max_model_len = client.renderer, client.model_config.max_model_len
    generate, process = client.generate, renderer.process_for_engine_async

    async def process_for_engine_async(*args: Any, **kwargs: Any) -> Any:
        engine_input = await process(*args, **kwargs)
        if (asked := _ASKED.get()) is not None:
            _check_room(asked.options, engine_input, max_model_len)
            if asked.options.given is not None:
                check_prompt(asked.options.given, _tokens_of(engine_input, "continues_tree"), None)
        return engine_input

    def generate_or_refuse(*args: Any, **kwargs: Any) -> Any:
        try:
            return generate_as_asked(*args, **kwargs)
        except BadRequestOptions as error:
            visits.refuse(error)  # /v1/responses has begun its stream by now
            raise

    def generate_as_asked(prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        _check_integers(sampling_params)
        given = sampling_params.extra_args or {}
        others = {name: value for name, value in given.items() if name not in (KEY, COMPILED)}
        fields: dict[str, Any] = NO_FORKS
        if (asked := _ASKED.get()) is not None:
            _check_room(asked.options, prompt, max_model_len)
            _check_forks(client, asked.options, prompt, sampling_params, kwargs)
            asked.charge(sampling_params.n, sampling_params.max_tokens, max_model_len)
            if asked.options.given is not None:
                most = asked.most_tokens(sampling_params.max_tokens, max_model_len)
                check_prompt(asked.options.given, _tokens_of(prompt, "continues_tree"), most)
            fields = msgspec.to_builtins(asked.options)
        sampling_params.extra_args = (others | ({COMPILED: fields} if fields else {})) or None
        if asked is None or asked.trees is None:
            return generate(prompt, sampling_params, *args, **kwargs)
        sampling_params = with_logprobs(sampling_params)
        num_prompt_tokens = len(_tokens_of(prompt))
        asked.charge_trees(sampling_params.n, num_prompt_tokens, _num_top(client, sampling_params))
        request_id = args[0] if args else kwargs["request_id"]
        outputs = generate(prompt, sampling_params, *args, **kwargs)
        return asked.trees.gathering(request_id, sampling_params, outputs)

    renderer.process_for_engine_async = process_for_engine_async
    client.generate = generate_or_refuse


def _tokens_of(engine_input: Any, asked: str = "return_tree") -> list[int]:
    """The tokens that a tree begins with, of which ``asked`` is.

    Raises BadRequestOptions if the prompt has others than tokens. The parts of a chat may be embeddings,
    which ``field.py`` does not see.
    """
    given = engine_input if isinstance(engine_input, dict) else {}
    ids: list[int] | None = given.get("prompt_token_ids")
    if given.get("prompt_embeds") is not None or "prompt_embeds" in (given.get("mm_placeholders") or ()):
        reason = "prompt embeddings"
    elif ids is None:
        reason = f"a prompt of the kind {given.get('type')}"
    else:
        return ids
    raise BadRequestOptions(f"forkjoin.{asked}: expected a prompt of tokens alone, got {reason}: drop one")


def _num_top(client: Any, sampling_params: Any) -> int:
    """Likeliest tokens that are told beside each token; -1 stands for the whole vocabulary."""
    num: int = sampling_params.num_logprobs
    return client.model_config.get_vocab_size() if num < 0 else num


def _check_integers(sampling_params: Any) -> None:
    """Raise BadRequestOptions for a number that can't be sent to an engine.

    vLLM bounds most of them. One that it does not, ``top_k`` say, would fail when it is sent, and the request
    stay in its books forever.
    """
    # What grammars hold has been measured (grammars.py), and is more.
    names = [name for name in sampling_params.__struct_fields__ if name != "structured_outputs"]
    left = [(name, getattr(sampling_params, name)) for name in names]
    while left:
        name, value = left.pop()
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise BadRequestOptions(
                f"{cut(name, 60)}: expected an integer of at most {MAX_BITS} bits, got {excerpt(value)}"
            )
        if isinstance(value, (list, tuple, set)):
            left += [(name, item) for item in value if not isinstance(item, (str, float))]
        elif isinstance(value, dict):
            left += [(f"{name}.{key}", item) for key, item in value.items()]
        elif is_dataclass(value):
            left += [(f"{name}.{key}", item) for key, item in vars(value).items()]


def _check_room(options: CompiledOptions, engine_input: Any, max_model_len: int) -> None:
    ids = engine_input.get("prompt_token_ids") if isinstance(engine_input, dict) else None
    if ids is not None:
        check_room(options, len(ids), max_model_len)


def _check_forks(
    client: Any, options: CompiledOptions, engine_input: Any, sampling_params: Any, more: dict[str, Any]
) -> None:
    """Raise BadRequestOptions where the engine would not do the fork that the request itself asks for.

    ``bypass.py`` tells most of that from the body, before a prompt is made of it; this is what vLLM has
    made of it.
    """
    if not options.forks_at_prompt and options.given is None:
        return
    kind = engine_input.get("type") if isinstance(engine_input, dict) else None
    reason: str | None
    if reason := _structured_reason(client, options, engine_input, sampling_params, more):
        pass
    elif sampling_params.prompt_logprobs is not None:
        reason = "prompt_logprobs"
    elif sampling_params.prompt_logprob_token_ids is not None:
        reason = "prompt_logprob_token_ids"
    elif sampling_params.thinking_token_budget not in (None, -1):
        reason = "thinking_token_budget"
    elif kind == "multimodal" and _has_media_of_one_request(client):
        reason = "media beside --video-pruning-rate or --mm-processor-cache-type shm"
    elif kind not in (None, "token", "multimodal"):
        reason = f"a prompt of the kind {kind}"
    else:
        return
    asked = "best_of" if options.best_of is not None else "branches" if options.branches else "continues_tree"
    raise BadRequestOptions(
        f"forkjoin.{asked}: expected a request that may fork, but not with {reason}: drop one"
    )


def _has_media_of_one_request(client: Any) -> bool:
    multimodal = getattr(client.model_config, "multimodal_config", None)
    if multimodal is None:
        return False
    return bool(multimodal.is_multimodal_pruning_enabled()) or multimodal.mm_processor_cache_type == "shm"


def _structured_reason(
    client: Any, options: CompiledOptions, engine_input: Any, sampling_params: Any, more: dict[str, Any]
) -> str | None:
    """Why what vLLM has made of a structured request will not fork; None if it may, or is none."""
    if sampling_params.structured_outputs is None or options.best_of is not None:
        return None
    reasons = has_reasoning_parser(getattr(client, "vllm_config", None))
    if reason := block_reason(options, reasons):
        return reason
    prompt_ids = engine_input.get("prompt_token_ids") if isinstance(engine_input, dict) else None
    return why_not_reasoning(client, options, list(prompt_ids or ()), sampling_params, more)
