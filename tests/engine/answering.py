"""The scheduler driven by hand (``by_hand.py``) with grammars: what is written obeys them, as in the workers."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.request import Request
from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

from forkjoin_bench.vllm_seam.fed import runner_output
from forkjoin_server.vllm_seam.request.formats import constraint_of
from tests.engine.by_hand import ByHand
from tests.engine.copies import Work
from tests.engine.invariants import check_invariants


class Answering(ByHand):
    """Whatever a request is told to write, it writes what its grammar and its bad words allow.

    What they don't allow is left out; one that is told nothing more writes the first token that is allowed.
    """

    def add(self, request_id: str, prompt: str, **params: Any) -> None:
        """``structured``: a ``StructuredOutputsParams``, or a regex."""
        given = params.pop("structured", None)
        if given is not None:
            wanted = StructuredOutputsParams(regex=given) if isinstance(given, str) else given
            validate_xgrammar_grammar(SamplingParams(structured_outputs=wanted))  # which changes it
            wanted._backend = "xgrammar"
            params["structured_outputs"] = wanted
        super().add(request_id, prompt, **params)

    def constrain(self, response_format: dict[str, Any]) -> dict[str, Any] | None:
        config = self.scheduler.vllm_config
        renderer = SimpleNamespace(get_tokenizer=lambda: self.tokenizer._inner)
        client = SimpleNamespace(vllm_config=config, model_config=config.model_config, renderer=renderer)
        return constraint_of(client, response_format)

    def enqueue(self, request: Request) -> None:
        if request.use_structured_output:
            self.scheduler.structured_output_manager.grammar_init(request)
            wait_for_grammar(request)
        super().enqueue(request)

    def schedule(self) -> None:
        for request in list(self.scheduler.requests.values()):
            if self.waits_for_grammars:
                wait_for_grammar(request)
        output = self.scheduler.schedule()
        check_invariants(self.scheduler)
        works = self.begin(output)
        sampled: dict[str, list[int]] = {}
        if output.pending_structured_output_tokens:  # as the engine core: the mask needs what is in flight
            while self._in_flight:
                self.update()
        allowed = self._allowed(output)
        for request_id in output.num_scheduled_tokens:
            request = self.scheduler.requests.get(request_id)
            if request is None:
                sampled[request_id] = [0]
            else:
                sampled[request_id] = self._obeying(request, works[request_id], allowed.get(request_id))
        self._in_flight.append((output, runner_output(sampled)))

    #: Whether each step waits until all grammars are compiled, so that tests are the same each time.
    waits_for_grammars = True

    def _allowed(self, output: Any) -> dict[str, np.ndarray]:
        grammars = self.scheduler.get_grammar_bitmask(output)
        if grammars is None:
            return {}
        bits = np.unpackbits(grammars.grammar_bitmask.view(np.uint8), axis=1, bitorder="little")
        return dict(zip(grammars.structured_output_request_ids, bits, strict=False))

    def _obeying(self, request: Request, work: Work, allowed: np.ndarray | None) -> list[int]:
        banned = [row[0] for row in request.sampling_params.bad_words_token_ids or () if len(row) == 1]
        writing = self._writing[request.request_id]
        if request.is_prefill_chunk:
            return []
        while True:
            if writing:
                written = writing.popleft()
            else:
                written = self.filler_id if allowed is None else int(np.flatnonzero(allowed)[0])
            if written not in banned and (allowed is None or allowed[written]):
                return self.copies.sample(request, work, lambda _, token_id=written: token_id)


def wait_for_grammar(request: Request) -> None:
    structured = request.structured_output_request
    if structured is not None and isinstance(structured._grammar, Future):
        structured._grammar.exception()
