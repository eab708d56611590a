"""A request on the real scheduler, written down step by step. No model runs: the texts are given.

The driver is that of the tests (``tests/engine/by_hand.py``), which checks in each step that every branch
reads the KV of its own context.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forkjoin_scheduler.dialects.files import load
from tests.engine.by_hand import ByHand
from tests.engine.copies import Work
from tests.engine.kv_numbers import move, slots_of
from tests.engine.renamed import model_for

#: The id of the request; its threads are ``r#0``, ``r#1``.
PARENT = "r"
#: Who computes KV beside the branches: the join.
JOIN = "join"


@dataclass(frozen=True)
class Script:
    """What a request writes: its prompt, the text up to the trigger, each thread, what follows the join."""

    dialect: str
    prompt: str
    fork: str
    threads: tuple[str, ...]
    closing: str


@dataclass(frozen=True)
class Table:
    """The block table of a branch, and of each of its tokens with KV who computed it."""

    branch: str
    block_ids: tuple[int, ...]
    writers: tuple[str, ...]
    #: Of each token, whether its KV was copied to where it is.
    moved: tuple[bool, ...]


class Recorded(ByHand):
    """A run of one request. ``steps``: the tokens that each step computes, by branch."""

    def __init__(self, script: Script, block_size: int = 16) -> None:
        # The tokenizer is read when it starts; nothing of the model is read after that.
        with tempfile.TemporaryDirectory() as folder:
            model = model_for(script.dialect, lambda _: Path(folder))
            super().__init__(load(script.dialect), model, block_size=block_size, num_blocks=200)
        self.block_size = block_size
        self.steps: list[dict[str, int]] = []
        self._names: list[str] = []
        num_slots = len(self.scheduler.kv_cache_manager.block_pool.blocks) * block_size
        self._writers = np.zeros(num_slots, dtype=np.int16)
        self._moved = np.zeros(num_slots, dtype=bool)
        self.add(PARENT, script.prompt)
        self.say(PARENT, script.fork + script.closing + "<|end|>")
        for i, text in enumerate(script.threads):
            self.say(self.thread(i), text)

    def thread(self, index: int) -> str:
        """The id of a thread."""
        return f"{PARENT}#{index}"

    @property
    def has_joined(self) -> bool:
        """Whether the parent has written a token after its join."""
        return bool(self.events("joined")) and self.decodes(PARENT)

    def begin(self, output: Any) -> dict[str, Work]:
        """Compute a step, and note who computes what."""
        works: dict[str, Work] = super().begin(output)
        step: dict[str, int] = {}
        orders = move(self._writers, output, self.block_size)
        move(self._moved, output, self.block_size)
        self._moved[orders.slot_copies[:, 1]] = True
        for request_id, work in works.items():
            name = self._name(request_id)
            num = len(work.tokens) - work.first
            step[name] = step.get(name, 0) + num
            slots = slots_of(self._blocks(request_id), len(work.tokens), self.block_size)[work.first :]
            self._writers[slots], self._moved[slots] = self._code(name), False
        self.steps.append(step)
        return works

    def table(self, branch: str) -> Table:
        """The blocks of ``branch`` now."""
        request, block_ids = self.request(branch), self._blocks(branch)
        slots = slots_of(block_ids, request.num_computed_tokens, self.block_size)
        writers = tuple(self._names[code] for code in self._writers[slots])
        return Table(branch, tuple(block_ids), writers, tuple(map(bool, self._moved[slots])))

    def _blocks(self, request_id: str) -> list[int]:
        (ids,) = self.scheduler.kv_cache_manager.get_block_ids(request_id)
        return list(ids)

    def _name(self, request_id: str) -> str:
        """Who computes: a branch, or the join if the parent's new context is prefilled."""
        if "#fill" in request_id:
            return JOIN
        prefills_join = request_id == PARENT and self.events("forked") and not self.decodes(PARENT)
        return JOIN if prefills_join else request_id

    def _code(self, name: str) -> int:
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name)
