"""Where the answer of a request begins, and with it the grammar of its structured output.

vLLM holds a grammar back until a *reasoner*, of its reasoning parsers, has seen the end of the reasoning.
What stands before that end forks and joins; what follows it is vLLM's alone. A request may also say that its
dialect knows where the answer begins (``forkjoin.structured: answer``): then the reasoner is ours.

Invariants (pinned by tests): nothing forks in an answer that a grammar holds for; no thread writes what would
begin the answer; where a join writes it, the answer begins there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from vllm.parser.engine.adapters import ParserEngineReasoningAdapter
from vllm.reasoning import ReasoningParser
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

from forkjoin_scheduler.dialects.bound import WINDOW_TOKENS, BoundDialect
from forkjoin_scheduler.dialects.dialect import Answer, Dialect
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.request.options import CompiledBranch, CompiledOptions

Rows = list[list[int]]


class NoReasoning:
    """Where the server has no reasoning parser: what vLLM asks for requests that reason in no way."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether the answer begins after a prompt: it does."""
        return True


_NO_REASONING = cast(type[ReasoningParser], NoReasoning)


class DialectReasoner:
    """Tells vLLM's structured outputs where ``answer`` begins in the text of one request."""

    def __init__(self, bound_dialect: BoundDialect, answer: Answer) -> None:
        self.bound_dialect, self.answer = bound_dialect, answer

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether a prompt ends with what begins the answer; earlier turns may have ended theirs."""
        after = self.answer.after
        tail = self.bound_dialect.tokenizer.decode(list(input_ids[-WINDOW_TOKENS:]))
        return after is not None and tail.rstrip().endswith(after)

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Whether one of ``delta_ids``, the last of ``input_ids``, begins the answer."""
        num = len(list(delta_ids))
        ids = list(input_ids[-(WINDOW_TOKENS + num) :])
        return any(self.bound_dialect.begins_answer(self.answer, ids[: len(ids) - i]) for i in range(num))


class Answers:
    """Opens and watches structured answers. ``manager`` is vLLM's ``StructuredOutputManager``."""

    def __init__(self, manager: StructuredOutputManager) -> None:
        self._manager = manager

    def await_answer(
        self, request: Request, bound_dialect: BoundDialect, answer: Answer, joins: bool
    ) -> None:
        """Hold the grammar of ``request`` back until its ``answer`` begins.

        ``joins``: whether it may reach a join; if not, one that begins after a join begins at once.
        """
        structured = request.structured_output_request
        if structured is None or structured.reasoning_ended:
            return
        if answer.after is None and not joins:
            structured.reasoning_ended = True
            return
        if self._manager.reasoner_cls is None:
            self._manager.reasoner_cls = _NO_REASONING  # without one vLLM asks no request's own
        reasoner = DialectReasoner(bound_dialect, answer)
        structured.reasoner = cast(ReasoningParser, reasoner)  # what vLLM calls of one
        structured.reasoning_ended = reasoner.is_reasoning_end(request.prompt_token_ids or ())

    def comes_later(self, request: Request, dialect: Dialect) -> bool:
        """Whether ``request`` writes anything before its answer, and it is known where that begins.

        A reasoning parser does not see an answer of ``dialect`` that begins after a join.
        """
        if self._manager._get_constraint_bounds(request, ()).constraint_start == 0:
            return False
        is_seen = dialect.answer is None or not dialect.answer.behind_join
        structured = request.structured_output_request
        return is_seen or (structured is not None and isinstance(structured.reasoner, DialectReasoner))

    def openings(self, request: Request, tokenizer: Tokenizer) -> Rows | None:
        """The rows of tokens that begin the answer of ``request``; None where they are not known."""
        reasoner = self._manager._get_reasoner(request)
        if isinstance(reasoner, DialectReasoner):
            after = reasoner.answer.after
            return [] if after is None else [reasoner.bound_dialect.answer_ids(after)]
        return reasoning_ends(reasoner, tokenizer)

    def has_begun(self, request: Request) -> bool:
        """Whether the grammar of ``request`` holds for all that it writes from now on."""
        structured = request.structured_output_request
        return structured is not None and structured.reasoning_ended is True

    def has_begun_in(self, request: Request, token_ids: list[int]) -> bool:
        """Whether it does so after ``token_ids``, the last that ``request`` wrote, all in one step."""
        structured = request.structured_output_request
        if structured is None or structured.reasoning_ended or not token_ids:
            return self.has_begun(request)
        start, _ = self._manager._get_constraint_bounds(request, token_ids, spec_tokens_committed=True)
        return bool(start <= len(token_ids))

    def joined(self, request: Request, token_ids: Sequence[int]) -> None:
        """A join, or a swap, has written ``token_ids`` at the end of the context of ``request``.

        If they begin the answer, the grammar goes on after them; it begins there, where they don't obey it.
        """
        structured = request.structured_output_request
        if structured is None or structured.reasoning_ended or not token_ids:
            return
        if isinstance(structured.reasoner, DialectReasoner) and structured.reasoner.answer.after is None:
            structured.reasoning_ended = True
            return
        new_ids = list(token_ids)
        start, _ = self._manager._get_constraint_bounds(request, new_ids, spec_tokens_committed=True)
        if start > len(new_ids):
            return
        structured.reasoning_ended = True
        grammar, rest = structured.grammar, new_ids[start:]
        if rest and isinstance(grammar, StructuredOutputGrammar) and grammar.validate_tokens(rest) == rest:
            grammar.accept_tokens(request.request_id, rest)

    def did_not_join(self, request: Request) -> None:
        """The fork after which the answer was to begin will not be: it begins here."""
        structured = request.structured_output_request
        reasoner = None if structured is None else structured.reasoner
        if structured is not None and isinstance(reasoner, DialectReasoner) and reasoner.answer.after is None:
            structured.reasoning_ended = True

    def begin_thread(self, request: Request, root: Request, has_own: bool) -> None:
        """Compile the grammar of the new ``request`` of a thread, if it is to obey one.

        ``has_own``: one of its own, from its start; else that of ``root``, in its answer.
        """
        structured, of_root = request.structured_output_request, root.structured_output_request
        if structured is None:
            return
        if has_own or of_root is None:
            structured.reasoning_ended = True
        else:
            structured.reasoning_ended = of_root.reasoning_ended
            structured.reasoning_parser_kwargs = of_root.reasoning_parser_kwargs
            if isinstance(of_root.reasoner, DialectReasoner):  # which has no state
                structured.reasoner = of_root.reasoner
        self._manager.grammar_init(request)


def reasoning_ends(reasoner: Any, tokenizer: Tokenizer) -> Rows | None:
    """The rows of tokens that end reasoning, to vLLM's ``reasoner``; None where it does not say."""
    if isinstance(reasoner, ParserEngineReasoningAdapter) and reasoner.reasoning_end_token_ids:
        return [[token_id] for token_id in sorted(reasoner.reasoning_end_token_ids)]
    text = reasoner.reasoning_end_str
    return [tokenizer.encode(text)] if text else None


def place_of_answer(bound_dialect: BoundDialect, options: CompiledOptions) -> Answer | None:
    """Where the answer of a request begins that leaves this to the dialect of the server."""
    if options.branches is not None and options.best_of is None:
        return Answer(behind_join=True) if options.closing is not None else None
    return bound_dialect.dialect.answer


def own_constraint(branch: CompiledBranch) -> StructuredOutputsParams | None:
    """What the thread of ``branch`` is to obey by itself."""
    if branch.structured is None:
        return None
    fields = dict(branch.structured)
    backend = fields.pop("backend")
    params = StructuredOutputsParams(**fields)
    params._backend = backend
    return params
