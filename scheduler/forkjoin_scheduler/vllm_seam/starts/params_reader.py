"""What a request asks of fork/join, read when it arrives."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from vllm.v1.request import Request

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import ForkAt
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.excerpt import cut
from forkjoin_scheduler.publish.recording import Recording
from forkjoin_scheduler.request.compiled import check_and_compile
from forkjoin_scheduler.request.explicit import explicit_dialect
from forkjoin_scheduler.request.given import BEGIN
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.settings import COMPILED, KEY, TREE
from forkjoin_scheduler.vllm_seam.cache.layouts import has_media_of_one_request
from forkjoin_scheduler.vllm_seam.core import Core, logger
from forkjoin_scheduler.vllm_seam.kept.leasing import Leasing
from forkjoin_scheduler.vllm_seam.starts.answers import Answers, place_of_answer
from forkjoin_scheduler.vllm_seam.starts.forkjoin_params import ForkJoinParams
from forkjoin_scheduler.vllm_seam.threads.sampling import (
    asks_for_prompt,
    can_ban,
    with_stops,
    without_banned,
)

_MAX_WARNING_CHARS = 300


class ParamsReader:
    """Reads the options of new requests, and notes the result (``forkjoin_params.py``). Keeps nothing."""

    def __init__(self, core: Core, answers: Answers, leasing: Leasing) -> None:
        self._core = core
        self._answers = answers
        self._leasing = leasing
        #: Whether media are handed on in a way that threads can't share.
        self._keeps_media = has_media_of_one_request(core.scheduler.vllm_config.model_config)

    def attach(self, request: Request) -> None:
        """Note what ``request`` asks of fork/join, and what that means for it from its start."""
        options = self._options(request)
        self._leasing.attach(request, options)
        # Whether it forks or not; one that does counts all its threads.
        limits = options.limits(self._core.settings.limits)
        request.max_tokens = min(request.max_tokens, limits.max_total_tokens or request.max_tokens)
        self._await_answer(request, options)
        fj_params = self.of(request, options, limits)
        if fj_params is None:
            if request.use_structured_output:
                self._answers.did_not_join(request)
            return
        if banned := fj_params.bound_dialect.banned_ids():
            fj_params.sampling_params = request.sampling_params = without_banned(
                fj_params.sampling_params, banned
            )
        request.sampling_params = with_stops(fj_params.sampling_params, fj_params.bound_dialect.stop_ids)
        request.max_tokens = self._own_max_tokens(request.max_tokens, fj_params)
        self._core.fj_params[request.request_id] = fj_params
        if options.return_tree or (request.sampling_params.extra_args or {}).get(TREE):
            recording = Recording(
                request.prompt_token_ids or [], fj_params.sampling_params, self._core.weights
            )
            fj_params.recording = self._core.recordings[request.request_id] = recording

    @staticmethod
    def _own_max_tokens(max_tokens: int, fj_params: ForkJoinParams) -> int:
        """What a request itself may write of its answer of ``max_tokens``."""
        dialect, most = fj_params.bound_dialect.dialect, fj_params.limits.max_tokens_per_thread
        if dialect.limits_parent and most is not None:
            max_tokens = min(max_tokens, most)
        return max(max_tokens - dialect.reserve, 1)

    def of(self, request: Request, options: CompiledOptions, limits: Limits) -> ForkJoinParams | None:
        """What ``request`` asks of fork/join; None if it has nothing to do with it (see the README)."""
        assert self._core.bound_dialect is not None
        params = request.sampling_params
        assert params is not None
        if (
            not options.enabled
            or request.prompt_embeds is not None
            or (request.mm_features and self._keeps_media)
            # vLLM counts it in each request by itself: in each thread, were there any
            or params.thinking_token_budget not in (None, -1)
        ):
            return None
        bound_dialect, at_prompt = (
            self._core.bound_dialect,
            self._core.bound_dialect.dialect.fork_at is ForkAt.PROMPT,
        )
        if options.rounds is not None:
            bound_dialect = replace(bound_dialect, dialect=bound_dialect.dialect.with_rounds(options.rounds))
        if options.forks_at_prompt:
            bound_dialect, at_prompt = (
                BoundDialect(explicit_dialect(options, limits), self._core.tokenizer, None),
                True,
            )
        goes_on = options.given is not None and bool(options.given.stretches)
        if (at_prompt or goes_on) and asks_for_prompt(params):
            _warn(request, "log-probabilities of a prompt that forks at its end: decoding sequentially")
            return None
        if request.mm_features and bound_dialect.dialect.join.asks_again:
            _warn(request, "images and the like in rounds, whose prompts move them: decoding sequentially")
            return None
        not_in_threads = self._kept_for_answer(request, bound_dialect)
        if not_in_threads is None:
            return None
        return ForkJoinParams(
            options,
            limits,
            bound_dialect,
            params,
            request.max_tokens,
            request.num_prompt_tokens,
            at_prompt or goes_on,
            not_in_threads,
            given=BEGIN if goes_on else None,
        )

    def _kept_for_answer(self, request: Request, bound_dialect: BoundDialect) -> list[list[int]] | None:
        """The rows of tokens that no thread of ``request`` may write: they would begin its answer.

        None: it can't fork, for its grammar holds for what would.
        """
        if not request.use_structured_output or bound_dialect.dialect.join.threads_are_answers:
            return []
        if not bound_dialect.dialect.join.goes_on or not self._answers.comes_later(
            request, bound_dialect.dialect
        ):
            return None
        rows, params = self._answers.openings(request, self._core.tokenizer), request.sampling_params
        return rows if rows is not None and params is not None and can_ban(params, rows) else None

    def _await_answer(self, request: Request, options: CompiledOptions) -> None:
        """Hold back the grammar of a structured ``request`` whose dialect says where its answer begins."""
        if options.structured is None or not request.use_structured_output:
            return
        assert self._core.bound_dialect is not None
        if answer := place_of_answer(self._core.bound_dialect, options):
            self._answers.await_answer(
                request, self._core.bound_dialect, answer, joins=options.enabled and options.best_of is None
            )

    def _options(self, request: Request) -> CompiledOptions:
        """What ``request`` asks for: checked by the API process, or here if it comes without one."""
        assert request.sampling_params is not None
        extra_args = request.sampling_params.extra_args or {}
        if COMPILED in extra_args:
            return msgspec.convert(extra_args[COMPILED], CompiledOptions)
        try:
            return check_and_compile(
                extra_args.get(KEY) or {}, self._core.settings, self._core.tokenizer.encode
            )
        except BadRequestOptions as error:
            _warn(request, f"{cut(str(error), _MAX_WARNING_CHARS)}; decoding sequentially")
            return CompiledOptions(enabled=False)


def _warn(request: Request, message: str) -> None:
    extra = {"forkjoin": {"request_id": request.request_id}}
    logger.warning("%s: %s", request.request_id, message, extra=extra)
