"""What reference clients ask: text after a context, up to a stop text. A scripted model, or stock ``vllm serve``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from forkjoin_scheduler.vllm_seam.threads.sampling import derived_seed

#: Sampling: a repetition penalty that counts what the request itself has written, and no prompt.
OWN_PENALTY = "own_repetition_penalty"
#: After so many tokens that the model draws itself, the text that it then writes.
Drawn = tuple[int, str]


@dataclass(frozen=True)
class Piece:
    """A stretch of text: ``stop`` is the stop text that it ends with; None: end of sequence, or its limit."""

    text: str
    stop: str | None
    num_tokens: int


class Completions(Protocol):
    """An engine that forks nothing."""

    def write(
        self,
        context: str,
        stops: Sequence[str] = (),
        *,
        branch: str = "",
        max_tokens: int | None = None,
        num_joins: int = 0,
        sampling: Mapping[str, float] | None = None,
    ) -> Piece:
        """What follows ``context``, the first of ``stops`` included. ``branch`` says whose noise is drawn.

        ``num_joins``: how often the request itself, "", has got its threads back, each time with other noise.
        ``sampling``: parameters of the request, in the place of those that all have.
        """


class Scripted:
    """A model that writes what a script says, as ``tests.engine.harness.Script`` has it.

    ``script``: by what a context ends with, the text that follows; the longest end counts. A context that
    ends with all that a piece was is gone on with. ``encode``: texts as tokens, to count them.
    """

    def __init__(self, script: Mapping[str, str | Drawn], encode: Callable[[str], Sequence[Any]]) -> None:
        self._script = script
        self._encode = encode
        self._rests: dict[str, str] = {}

    def follows(self, context: str) -> str | Drawn:
        """All that the model would write after ``context``, before its end of sequence."""
        if context in self._rests:
            return self._rests[context]
        ends = [end for end in self._script if context.endswith(end)]
        return self._script[max(ends, key=len)]

    def write(
        self,
        context: str,
        stops: Sequence[str] = (),
        *,
        branch: str = "",
        max_tokens: int | None = None,
        num_joins: int = 0,
        sampling: Mapping[str, float] | None = None,
    ) -> Piece:
        text = self.follows(context)
        assert isinstance(text, str), "a model that draws is needed here"
        stop = min((s for s in stops if s in text), key=lambda s: (text.index(s), -len(s)), default=None)
        written = text if stop is None else text[: text.index(stop) + len(stop)]
        num_tokens = len(self._encode(written))
        if max_tokens is not None and num_tokens > max_tokens:
            stop = None
            while len(self._encode(written)) > max_tokens:
                written = written[:-1]
        self._rests[context + written] = text[len(written) :]
        return Piece(written, stop, len(self._encode(written)))


class Stock:
    """Stock ``vllm serve``, which is made to write the same by ``tests.reference_clients.forced``."""

    def __init__(
        self, url: str, scripted: Scripted, encode: Callable[[str], Sequence[int]], eos: int, **options: Any
    ) -> None:
        """``options``: of the requests; ``seed`` becomes that of each branch's stretch of text."""
        self._url = f"{url}/v1/completions"
        self._scripted = scripted
        self._encode = encode
        self._eos = eos
        self._options = options
        #: By branch, from where it was asked for.
        self._contexts: dict[str, list[str]] = {}

    def write(
        self,
        context: str,
        stops: Sequence[str] = (),
        *,
        branch: str = "",
        max_tokens: int | None = None,
        num_joins: int = 0,
        sampling: Mapping[str, float] | None = None,
    ) -> Piece:
        text = self._scripted.follows(context)
        if isinstance(text, str):
            self._scripted.write(context, stops, max_tokens=max_tokens)
        num_drawn, then = text if isinstance(text, tuple) else (0, text)
        script = json.dumps([[[], num_drawn, list(self._encode(then))]])
        own = dict(sampling or {})
        extra = {"script": script, "eos": self._eos, OWN_PENALTY: own.pop(OWN_PENALTY, 1.0)}
        body = {
            "model": "stock",
            "prompt": list(self._encode(context)),
            "stop": list(stops) or None,
            "include_stop_str_in_output": True,
            "max_tokens": max_tokens or 2000,
            "vllm_xargs": extra,
        }
        body |= self._options | own | self._seed(branch, context, num_joins)
        answer = httpx.post(self._url, json=body, timeout=120).raise_for_status().json()
        choice, stop = answer["choices"][0], answer["choices"][0]["stop_reason"]
        return Piece(choice["text"], stop, answer["usage"]["completion_tokens"])

    def _seed(self, branch: str, context: str, num_joins: int) -> dict[str, int]:
        """Ours draws what a request writes first with its seed, and all else with one derived of that.

        What is asked for again is drawn again.
        """
        seed = self._options.get("seed")
        contexts = self._contexts.setdefault(branch, [])
        if context not in contexts:
            contexts.append(context)
        num_starts = contexts.index(context) + 1 if branch else num_joins
        if seed is None or not num_starts:
            return {}
        return {"seed": derived_seed(seed, f"{branch}:{num_starts}")}
