"""The trees of the answers to one request (``forkjoin.return_tree``), and where its response carries them.

A tree stands beside the end of its answer: in ``choices``, and on ``/v1/responses`` in the response.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import msgspec

from forkjoin.tree.tree import Tree
from forkjoin_scheduler.publish.events import Event
from forkjoin_scheduler.publish.feed import FEEDS
from forkjoin_server.answer.weaver import Presenter
from forkjoin_server.asgi import Json
from forkjoin_server.routes import FINAL_EVENTS
from forkjoin_server.trees import TreeBuilder, tree_of

#: What vLLM numbers the prompts of a request by, behind its id.
_PROMPT = re.compile(r"[-_](\d+)\Z")
#: What an event of ``/v1/responses`` is called that shows segments. The other routes show them in a chunk.
SEGMENTS = "response.forkjoin.segments"
#: What such a chunk has of vLLM's first one, and each of its choices of one of its choices.
_OF_CHUNK = ("id", "object", "created", "model", "request_id", "output_mode")
_OF_CHOICE: Json = {"delta": {}, "text": "", "token_ids": []}
#: What vLLM's routes tell of a token that can't be; JSON knows no infinity.
_LEAST_LOGPROB = -9999.0


def with_logprobs(params: Any) -> Any:
    """``params``, of vLLM's, by which each token comes with its log-probability at least."""
    params = copy(params)
    if params.logprobs is None:
        params.logprobs = 0  # of the sampled token alone
    return params


@dataclass
class Trees:
    """Gathers the trees of all answers to the request that has this ``key`` in its id."""

    key: str
    #: Answers to each prompt.
    num_choices: int = 1
    num_answers: int = 1
    #: Whether segments are shown as they end, and the tree then without these.
    streams: bool = False
    #: Whether joins may close threads with segments of their own.
    closes_threads: bool = False
    #: As JSON has them, by the ``index`` of the choice, once its answer has ended.
    ended: dict[int, Json] = field(default_factory=dict)
    #: Segments that have ended, with the choice and the number of each, until they are taken.
    segments: list[tuple[int, Json]] = field(default_factory=list)

    async def gathering(
        self, request_id: str, params: Any, outputs: AsyncGenerator[Any, None]
    ) -> AsyncIterator[Any]:
        """``outputs`` of vLLM's for one prompt, as they are; before an answer's last, its tree is there.

        An error of ours leaves an answer without its tree, and ends none.
        """
        first, answers = self._first(request_id), dict[int, _Answer]()

        def answer_of(index: int) -> _Answer:
            return answers.setdefault(index, _Answer(params, index, self.closes_threads))

        def hear(index: int, events: list[Event]) -> None:
            answer_of(index).hear(events)
            if self.streams:
                self.segments += answer_of(index).segments(first + index)

        with FEEDS.listening(request_id, hear):
            async with aclosing(outputs) as given:
                async for output in given:
                    for completion in output.outputs:
                        answer = answer_of(completion.index)
                        answer.take(output.prompt_token_ids, completion)
                        if completion.finish_reason is not None:
                            self._end(first + completion.index, answer, completion)
                            del answers[completion.index]
                    yield output

    def _end(self, index: int, answer: _Answer, last: Any) -> None:
        if not answer.is_whole:
            return
        try:
            tree = as_json(answer.tree(last))
            if self.streams:
                tree["segments"] = [
                    None if number in answer.taken else segment
                    for number, segment in enumerate(tree["segments"])
                ]
            self.ended[index] = tree
        except Exception as error:
            FEEDS.contain("tree", error)

    def _first(self, request_id: str) -> int:
        """The index of the first choice for the prompt that a request of vLLM's is of."""
        if self.num_answers <= self.num_choices:
            return 0
        prompt = _PROMPT.match(request_id.rpartition(self.key)[2])
        return int(prompt[1]) * self.num_choices if prompt else 0


class _Answer:
    """What vLLM has put out of an answer, and the events of its segments."""

    def __init__(self, params: Any, index: int, closes_threads: bool) -> None:
        #: Whether no event is missing.
        self.is_whole = True
        self._builder = TreeBuilder(closes_threads=closes_threads)
        self._params, self._index = params, index
        self._prompt_ids: list[int] = []
        self._token_ids: list[int] = []
        self._logprobs: list[Any] = []

    def hear(self, events: list[Event]) -> None:
        """Take in what happened. Who calls contains an error, after which the answer is not whole."""
        try:
            self._builder.hear(events)
        except Exception:
            self.is_whole = False
            raise

    @property
    def taken(self) -> set[int]:
        """The numbers of the segments that have been shown."""
        return self._builder.taken

    def segments(self, index: int) -> list[tuple[int, Json]]:
        """Segments that have ended since this was asked last; ``index``: the choice's."""
        ended = self._builder.take_ended()
        made = as_json(Tree([segment for _, segment in ended], []))["segments"]
        return [
            (index, {"number": number, "segment": segment})
            for (number, _), segment in zip(ended, made, strict=True)
        ]

    def take(self, prompt_ids: list[int] | None, completion: Any) -> None:
        """Take in an output, of a stream or of the whole answer."""
        self._prompt_ids = prompt_ids or self._prompt_ids
        self._token_ids += completion.token_ids
        self._logprobs += completion.logprobs or ()

    def tree(self, last: Any) -> Tree:
        """The tree of the answer, which has ended with the output ``last``."""
        seed, num_top = self._params.seed, self._params.logprobs or 0
        return tree_of(
            self._builder,
            self._prompt_ids,
            self._token_ids,
            self._logprobs,
            num_top,
            None if seed is None else seed + self._index,  # as vLLM counts those of n
            last.finish_reason,
            last.weight_versions,
        )


def as_json(tree: Tree) -> Json:
    """``tree`` as ``Tree.to_dict`` has it, made of what JSON knows."""
    value: Json = msgspec.to_builtins(tree, str_keys=True)
    for segment in value["segments"]:
        if segment["logprobs"] is not None:
            segment["logprobs"] = [p if p is None else _finite(p) for p in segment["logprobs"]]
        if segment["top_logprobs"] is not None:
            segment["top_logprobs"] = [
                {token: _finite(p) for token, p in row.items()} for row in segment["top_logprobs"]
            ]
    return value


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LEAST_LOGPROB


class TreePresenter:
    """Shows threads as ``inner`` does, and a tree beside the end of its answer."""

    def __init__(self, inner: Presenter, trees: Trees) -> None:
        self._inner, self._trees = inner, trees
        #: How a chunk is shaped; None: there was none yet.
        self._template: Json | None = None
        #: Of a response, that have left.
        self._num_events = 0

    @property
    def is_ready(self) -> bool:
        return self._inner.is_ready

    def pass_on(self, chunk: Json) -> list[Json]:
        if chunk.get("type") in FINAL_EVENTS:
            chunk = chunk | {"response": self._with_tree(chunk["response"], 0)}
        is_first, self._template = self._template is None, self._template or _template_of(chunk)
        # none before vLLM's first chunk, unless that is the last
        segments = self._segments() if not is_first or _ends(chunk) else []
        return self._numbered([*segments, *self._inner.pass_on(self._with_trees(chunk))])

    def _segments(self) -> list[Json]:
        """The chunks that show segments which have ended."""
        if self._template is None:
            return []
        segments, self._trees.segments = self._trees.segments, []
        return [_with_segment(self._template, index, segment) for index, segment in segments]

    def show(self, entries: list[Json]) -> list[Json]:
        return self._numbered(self._inner.show(entries))

    def _numbered(self, events: list[Json]) -> list[Json]:
        """The same ``events`` of a response with numbers that count those of segments, too."""
        numbered = []
        for event in events:
            if "sequence_number" in event:
                event = event | {"sequence_number": self._num_events}
                self._num_events += 1
            numbered.append(event)
        return numbered

    def whole(self, response: Json) -> Json:
        response = self._inner.whole(response)
        return self._with_trees(response) if "choices" in response else self._with_tree(response, 0)

    def _with_trees(self, response: Json) -> Json:
        """``response``, or a chunk, with the tree of each choice that ends in it."""
        if not _ends(response):
            return response
        choices = [self._with_tree(choice, choice["index"]) for choice in response["choices"]]
        return response | {"choices": choices}

    def _with_tree(self, value: Json, index: int) -> Json:
        tree = self._trees.ended.get(index)
        return value if tree is None else value | {"tree": tree}


def _ends(response: Json) -> bool:
    """Whether a choice ends in ``response``, or in a chunk."""
    return any(choice.get("finish_reason") for choice in response.get("choices") or [])


def _template_of(chunk: Json) -> Json | None:
    """How chunks are shaped that follow ``chunk``, of vLLM's; None: it does not say."""
    if "type" in chunk:
        return {"type": SEGMENTS, "sequence_number": 0}
    if not chunk.get("choices"):
        return None
    choice = {name: value for name, value in _OF_CHOICE.items() if name in chunk["choices"][0]}
    return {name: chunk[name] for name in _OF_CHUNK if name in chunk} | {"choices": [choice]}


def _with_segment(template: Json, index: int, segment: Json) -> Json:
    if "choices" not in template:
        return template | {"segments": [segment]}
    choice = {"index": index, "finish_reason": None, "segments": [segment]}
    return template | {"choices": [template["choices"][0] | choice]}
