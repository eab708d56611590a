"""A logits processor that forces tokens, in our engine and in stock ``vllm serve``. Loaded by its path."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from tests.reference_clients.completions import OWN_PENALTY

#: A byte-level tokenizer begins with the printable characters of ASCII. What is drawn of these alone has one
#: text, and no tag.
_NUM_PRINTABLE = 94


class Forced(AdapterLogitsProcessor):
    """``script``, in JSON: what a prompt ends with, how many tokens the model draws, what it then writes.

    The entry with the longest end counts; without one the model writes. After its tokens comes end of sequence,
    ``eos``. ``OWN_PENALTY`` is what stock vLLM has not: its repetition penalty counts the prompt, too.
    """

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., torch.Tensor] | None:
        extra = params.extra_args or {}
        if "script" not in extra:
            return None
        script: list[tuple[list[int], int, list[int]]] = json.loads(extra["script"])
        penalty: float = extra.get(OWN_PENALTY, 1.0)

        def force(prompt_ids: list[int], output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            fitting = [e for e in script if list(prompt_ids)[len(prompt_ids) - len(e[0]) :] == e[0]]
            if not fitting:
                return logits
            _, num_drawn, tokens = max(fitting, key=lambda entry: len(entry[0]))
            position = len(output_ids) - num_drawn
            if position < 0:
                logits[_NUM_PRINTABLE:] = float("-inf")
                return _penalised(logits, output_ids, penalty)
            logits[:] = float("-inf")
            logits[tokens[position] if position < len(tokens) else extra["eos"]] = 0.0
            return logits

        return force


def _penalised(logits: torch.Tensor, output_ids: list[int], penalty: float) -> torch.Tensor:
    for token in set(output_ids):
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    return logits
