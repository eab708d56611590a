"""What the tests' server writes, and one answer of it at a speed at which there is time to do something."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from vllm import SamplingParams

from forkjoin_bench.vllm_seam.replay import Replay
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.tokenizers import tokenizer_of

#: What asks for it: two threads of 600 tokens, which are over within 3 s otherwise. No test waits for its end.
UNHURRIED = "long"
TOKEN_S = 0.05


@cache
def _start() -> list[int]:
    return tokenizer_of(str(EMBEDDED_MODEL)).encode(f"<|user|>{UNHURRIED}<|assistant|>")


class Unhurried(Replay):
    """As ``Replay``; each token of an answer to ``UNHURRIED`` takes ``TOKEN_S`` more."""

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., torch.Tensor]:
        """What forces the tokens of a request."""
        force = super().new_req_logits_processor(params)

        def unhurried(prompt_ids: list[int], output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            if prompt_ids[: len(_start())] == _start():
                time.sleep(TOKEN_S)
            return force(prompt_ids, output_ids, logits)

        return unhurried
