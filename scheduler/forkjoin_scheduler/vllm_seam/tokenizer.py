"""vLLM's tokenizer as the decisions see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import ModelConfig

#: Turns that no chat template writes by itself, to find what it writes around them.
_MARKS = ("\u2042first\u2042", "\u2042second\u2042", "\u2042third\u2042")


def end_of_sequence_ids(model_config: ModelConfig) -> frozenset[int]:
    """The end-of-sequence tokens of the model's generation config, which vLLM makes stop tokens."""
    ids = model_config.try_get_generation_config().get("eos_token_id")
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


class EngineTokenizer:
    """Encodes and decodes without special tokens added or dropped."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._vocab: dict[str, int] = inner.get_vocab()
        #: Whether a token of the vocabulary is what its text encodes to; asked of each thread that starts.
        self._is_encoded: dict[str, bool] = {}

    @classmethod
    def from_model_config(cls, model_config: ModelConfig) -> EngineTokenizer:
        """The tokenizer of the served model."""
        from vllm.tokenizers.registry import cached_tokenizer_from_config

        return cls(cached_tokenizer_from_config(model_config))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._inner.encode(text, add_special_tokens=False) if text else []
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._inner.decode(ids, skip_special_tokens=False)
        return text

    def token_id(self, token: str) -> int | None:
        known = self._vocab.get(token)
        if known is None:
            return None
        if token not in self._is_encoded:
            self._is_encoded[token] = self.encode(token) == [known]
        return known if self._is_encoded[token] else None

    def turns(self) -> tuple[str, str, str] | None:
        if getattr(self._inner, "chat_template", None) is None:
            return None
        first, second, third = _MARKS
        messages = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": second},
            {"role": "user", "content": third},
        ]
        text: str = self._inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        opening = self._inner.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        begin = opening.partition(first)[0]
        return begin, text.rpartition(second)[2].partition(third)[0], text.rpartition(third)[2]
