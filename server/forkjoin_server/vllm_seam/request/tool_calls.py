"""Tools that a model calls by itself, in a transcript that comes in pieces of many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forkjoin_server.vllm_seam.patching import put_in_place

#: Set on a parser, of which each answer has one: what makes text of its tokens.
_STREAM = "_forkjoin_stream"


def parse_token_by_token(skips_special: bool = True) -> None:
    """Let vLLM's tool parsers read each token by itself, as they read a plain model's.

    ``skips_special``: whether the texts of requests that do not say so leave special tokens out.

    Patch: ``DelegatingParser.parse_delta`` is called for each token of a piece; the deltas are put together.
    Symptom without it: at a join all that the later threads wrote comes at once, and of such a piece some
    parsers lose calls and text (deepseek_v3, deepseek_v31, mistral).
    Upstream: they expect a piece to hold one change of state. Remove when tests/engine/test_tools.py passes
    without it.
    """
    from vllm.parser.abstract_parser import DelegatingParser

    original = DelegatingParser.parse_delta
    if getattr(original, "is_token_by_token", False):
        return

    def parse_delta(
        self: Any,
        delta_text: str,
        delta_token_ids: list[int],
        request: Any,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> Any:
        pieces = _pieces(self, delta_text, delta_token_ids, request, skips_special)
        last = len(pieces) - 1
        deltas = [
            original(self, text, ids, request, prompt_token_ids, finished=finished and number == last)
            for number, (text, ids) in enumerate(pieces)
        ]
        return deltas[0] if last == 0 else _together([d for d in deltas if d is not None])

    parse_delta.is_token_by_token = True  # type: ignore[attr-defined]
    put_in_place(DelegatingParser, parse_delta)


def skips_special_by_default(model_config: Any) -> bool:
    """Whether the texts of requests that do not say so leave special tokens out.

    Requests always say so in vLLM 0.32. In 0.33 the model's generation config may, too.
    """
    return bool(model_config.get_diff_sampling_param().get("skip_special_tokens", True))


def _pieces(
    parser: Any, text: str, token_ids: Sequence[int], request: Any, skips_special: bool = True
) -> list[tuple[str, list[int]]]:
    """``text`` token by token, where it is that of ``token_ids``; one piece where it is not, or need not be.

    A stop string holds text back, and an end of sequence has none: what no token accounts for is one piece.
    """
    fast = getattr(parser.model_tokenizer, "_tokenizer", None)
    whole = [(text, list(token_ids))]
    if parser._tool_parser is None or not request.tools or fast is None:
        return whole
    stream = getattr(parser, _STREAM, None)
    if stream is None:
        from tokenizers.decoders import DecodeStream

        asked = request.skip_special_tokens
        stream = DecodeStream(skip_special_tokens=skips_special if asked is None else asked)
        setattr(parser, _STREAM, stream)
    written = [stream.step(fast, token_id) or "" for token_id in token_ids]
    if len(written) < 2:
        return whole
    pieces: list[tuple[str, list[int]]] = []
    rest = text
    for number, own in enumerate(written):
        if not rest.startswith(own) or (own and number == len(written) - 1 and own != rest):
            return [*pieces, (rest, list(token_ids[number:]))]
        pieces.append((own, [token_ids[number]]))
        rest = rest.removeprefix(own)
    return pieces if not rest else whole


def _together(deltas: list[Any]) -> Any:
    """One delta that says what ``deltas`` say, one after the other; None if there are none."""
    if not deltas:
        return None
    first, *others = deltas
    for delta in others:
        for name in ("content", "reasoning"):
            if (more := getattr(delta, name)) is not None:
                setattr(first, name, (getattr(first, name) or "") + more)
        if delta.tool_calls:
            first.tool_calls = [*first.tool_calls, *delta.tool_calls]
    return first
