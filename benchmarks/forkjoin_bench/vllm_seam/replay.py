"""A logits processor that makes any engine write a trace. Loaded by ``--logits-processors``.

The environment names the script (``script.py``). A request whose prompt is none of its contexts is
left to the model. Works on vLLM's V1 model runner, the default on CPUs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from forkjoin_bench.inputs.script import digest, find
from forkjoin_bench.vllm_seam.serving import SCRIPT_VARIABLE


@cache
def _script() -> tuple[int, dict[str, list[int]]]:
    script = json.loads(Path(os.environ[SCRIPT_VARIABLE]).read_text())
    return script["eos"], script["continuations"]


class Replay(AdapterLogitsProcessor):
    """Forces the next token of the script; after its end, the end of sequence."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., torch.Tensor]:
        eos, continuations = _script()
        #: What to write from this request's prompt: looked up once, at its first token.
        found: list[list[int] | None] = []

        def force(prompt_ids: list[int], output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            if not found:
                found.append(find(continuations, digest(prompt_ids), params.seed))
            if (tokens := found[0]) is not None:
                position = len(output_ids)
                logits.fill_(float("-inf"))
                logits[tokens[position] if position < len(tokens) else eos] = 0.0
            return logits

        return force
