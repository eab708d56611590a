"""Answers that take their time, where they are asked to: a test does things while they are made."""

from __future__ import annotations

import time

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, RequestLogitsProcessor

from tests.importing import ROOT, importable

#: What asks for it, in ``vllm_xargs``: the seconds that each token of each thread takes longer.
TOKEN_S = "test_token_s"
#: The environment of a server with ``FLAGS``.
ENV = importable(ROOT)


def taking(token_s: float) -> dict[str, dict[str, float]]:
    """The field of a request each of whose tokens takes so much longer."""
    return {"vllm_xargs": {TOKEN_S: token_s}}


class Unhurried(AdapterLogitsProcessor):
    """Changes no logits."""

    def is_argmax_invariant(self) -> bool:
        return False  # of such ones vLLM calls none where it samples greedily

    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        """What holds the tokens of a request that asks for it."""
        seconds = (params.extra_args or {}).get(TOKEN_S)
        if seconds is None:
            return None

        def wait(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            time.sleep(seconds)
            return logits

        return wait


FLAGS = ("--logits-processors", f"{__name__}:{Unhurried.__name__}")
