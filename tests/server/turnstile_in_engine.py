"""The end of ``turnstile.py`` that is in the engine's worker."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

from tests.server.turnstile import OPEN, VARIABLE, waiting, write


class WaitsAtTurnstile(LogitsProcessor):
    """Changes no logits; holds each step that the test has not yet allowed."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._path = Path(os.environ[VARIABLE])
        #: Steps that were counted: those while the turnstile was not open.
        self._num_passed = 0

    def is_argmax_invariant(self) -> bool:
        return False  # of such ones vLLM calls none where it samples greedily

    def update_state(self, batch_update: Any) -> None:
        """It is the same to all requests."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        while (allowed := self._path.read_text()) != OPEN:
            if self._num_passed < int(allowed):
                self._num_passed += 1
                break
            write(waiting(self._path), str(self._num_passed))
            time.sleep(0.01)
        return logits
