"""Answers that are cut off and gone on with, on the real scheduler without a model.

What is written next is decided by the tokens of a context alone, as a model's most likely token is. So an
answer that was cut off anywhere, and went on from its tree, must be the one that was not.
"""

from __future__ import annotations

from typing import Any

import msgspec
from vllm.v1.request import Request, RequestStatus

from forkjoin.tree.tree import Tree
from forkjoin_scheduler.publish.events import Event, SegmentWrote
from forkjoin_scheduler.replay.given import Engine
from forkjoin_scheduler.request.given import Given
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.settings import COMPILED
from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_server.request.continuing import continued
from forkjoin_server.trees import TreeBuilder, tree_of
from tests.engine.by_hand import ByHand
from tests.engine.copies import Work

#: Of a segment: the tokens that were given, those that were sampled, and the position of the first.
_Told = tuple[list[int], list[int], int]


class Told(ByHand):
    """Each context goes on as ``story`` says: behind the text that stands last in it of all keys."""

    def __init__(self, *args: Any, story: dict[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.story = story
        self.prompts: dict[str, list[int]] = {}

    def _sample(self, request: Request, work: Work) -> list[int]:
        if request.is_prefill_chunk:
            return []
        at = len(work.tokens) - work.num_drafts
        return self.copies.sample(request, work, lambda place: self._next(work.tokens[:at]))

    def _next(self, context: list[int]) -> int:
        text = self.tokenizer.decode(context)
        at, key = max((text.rfind(key) + len(key), key) for key in self.story if key in text)
        wanted, wrote = self.story[key], text[at:]
        if not wanted.startswith(wrote) or wanted == wrote:
            return self.filler_id  # what nobody will see
        return self.tokenizer.encode(wanted[len(wrote) :])[0]

    # ---- what a test does ------------------------------------------------------------------

    def ask(self, request_id: str, prompt: str, tree: Tree | None = None, **options: Any) -> None:
        """Add a request that wants its tree, and goes on from ``tree`` if there is one."""
        asked = options.pop("forkjoin", {}) | {"return_tree": True}
        if tree is not None:
            options["given"] = self.read(tree, asked)
        self.add(request_id, prompt, forkjoin=asked, **options)

    def enqueue(self, request: Request) -> None:
        self.prompts[request.request_id] = list(request.prompt_token_ids or ())
        super().enqueue(request)

    def read(self, tree: Tree, asked: dict[str, Any]) -> Given:
        """What the engine gets of ``tree``, as it comes over HTTP."""
        core = self.scheduler._core
        engine = Engine(core.bound_dialect, core.max_model_len, core.eos_ids)
        value = msgspec.json.decode(msgspec.json.encode(tree.to_dict()))
        options = continued(value, self.compiled(asked), core.settings, engine, len(self.tokenizer._vocab))
        assert options.given is not None
        return options.given

    def cut_off(self, request_id: str) -> Tree:
        """Abort a request; its tree so far."""
        if request_id in self.scheduler.requests:
            self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self.step(2)
        return self.tree(request_id, "abort")

    def tree(self, request_id: str, finish_reason: str | None = None) -> Tree:
        builder = TreeBuilder()
        builder.hear(self.told(request_id))
        answer = [i for o in self.outputs if o.request_id == request_id for i in o.new_token_ids]
        return tree_of(builder, self.prompts[request_id], answer, None, 0, None, finish_reason)

    def told(self, request_id: str) -> list[Event]:
        """The events of a request that the front end has been sent."""
        batches = [batch for batch in map(wire.unpack, self.outputs) if batch is not None]
        return [event for batch in batches if batch.request_id == request_id for event in batch.events]

    def num_written(self, request_id: str) -> int:
        """Tokens that a request sampled itself."""
        wrote = (event for event in self.told(request_id) if isinstance(event, SegmentWrote))
        return sum(len(event.token_ids) for event in wrote)

    def run(self, request_id: str) -> Tree:
        """Step to the end of a request; its tree."""
        self.steps_until(lambda: request_id not in self.scheduler.requests)
        self.step(2)
        ends = [o.finish_reason for o in self.outputs if o.request_id == request_id and o.finished]
        assert len(ends) == 1
        return self.tree(request_id, str(ends[0]))


def going_on(engine: Any, tree: Tree, **options: Any) -> Any:
    """Parameters for an engine of ``harness.py`` under which a request goes on from ``tree``."""
    core, params = engine.scheduler._core, engine.params(**options)
    of = Engine(core.bound_dialect, core.max_model_len, core.eos_ids)
    value = msgspec.json.decode(msgspec.json.encode(tree.to_dict()))
    vocab_size = engine.core.model_config.get_vocab_size()
    asked = continued(value, CompiledOptions(return_tree=True), core.settings, of, vocab_size)
    params.extra_args = {COMPILED: msgspec.to_builtins(asked)}
    return params


def told(tree: Tree) -> dict[str, list[_Told]]:
    """What each branch was given and wrote, by its path; segments that follow each other are one."""
    from forkjoin_server.request.continuing import _by_thread, _paths

    paths, found = _paths(tree), dict[str, list[_Told]]()
    for thread, numbers in _by_thread(tree).items():
        rows = found.setdefault(paths[thread], [])
        for segment in (tree.segments[number] for number in numbers):
            given, sampled = (
                segment.token_ids[: segment.num_injected],
                segment.token_ids[segment.num_injected :],
            )
            if rows and not given:
                rows[-1] = (rows[-1][0], [*rows[-1][1], *sampled], rows[-1][2])
            else:
                rows.append((given, sampled, segment.position))
    return found


def num_sampled(tree: Tree) -> int:
    return sum(len(segment.token_ids) - segment.num_injected for segment in tree.segments)


__all__ = ["Told", "going_on", "num_sampled", "told"]
