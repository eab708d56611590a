"""The texts of single tokens, each decoded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

Decode = Callable[[Any, list[int]], list[str]]


class TokenTexts:
    """``decode``, which gives the text of each token by itself, of those that were not asked for before.

    What is kept is at most a text for each token of a vocabulary.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._known: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()

    def __call__(self, tokenizer: Any, token_ids: list[int]) -> list[str]:
        """The texts of ``token_ids``, in their order."""
        if (known := self._known.get(tokenizer)) is None:
            known = self._known[tokenizer] = {}
        if new := [i for i in dict.fromkeys(token_ids) if i not in known]:
            known.update(zip(new, self._decode(tokenizer, new), strict=True))
        return [known[i] for i in token_ids]


def decode_alternatives_once() -> None:
    """Keep the texts of the alternatives that logprobs name.

    Patch: ``convert_ids_list_to_tokens``, as ``vllm.v1.engine.logprobs`` calls it.
    Symptom without it: of 20 alternatives a token each is decoded by itself, for every token again. That
    takes longer than all else that a front end does for a token, and meanwhile it answers nobody.
    Upstream: so in stock ``vllm serve``, too. Remove when it keeps them.
    """
    from vllm.v1.engine import logprobs

    setattr(logprobs, "convert_ids_list_to_tokens", TokenTexts(logprobs.convert_ids_list_to_tokens))  # noqa: B010
