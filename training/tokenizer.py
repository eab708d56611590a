"""A byte-level tokenizer without merges: one token a byte, and one for each control tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

PAD, EOS, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, EOS, USER, ASSISTANT)
#: ThreadWeaver's twelve, of which ``<Conclusion>`` is legacy, and Qwen3's ``<think>`` pair.
TAGS = tuple(
    f"<{slash}{name}>"
    for name in ("think", "Think", "Parallel", "Outlines", "Outline", "Thread", "Conclusion")
    for slash in ("", "/")
)
#: Renders the last user turn only: the model was trained on single turns.
CHAT_TEMPLATE = (
    "{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}"
    "{%- if not users -%}{{ raise_exception('expected a message with role user') }}{%- endif -%}"
    "{%- set content = users[-1]['content'] -%}"
    "{{- '<|user|>' -}}"
    "{%- if content is string -%}{{ content }}"
    "{%- else -%}{%- for part in content -%}{{ part['text'] }}{%- endfor -%}{%- endif -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def build() -> Tokenizer:
    """The tokenizer: 256 bytes, then the special tokens, then the tags, padded to 288 ids."""
    alphabet = sorted(ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    # Not special: vLLM's default skip_special_tokens would strip them from what clients see.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return tokenizer


def save(folder: Path) -> None:
    """Write ``tokenizer.json`` and its configuration with the chat template to ``folder``."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=build(), eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def chat_prompt(text: str) -> str:
    """What the chat template makes of one user message."""
    return f"{USER}{text}{ASSISTANT}"


def token_id(tokenizer: Any, token: str) -> int:
    """The id of ``token``. Raises ValueError if the vocabulary lacks it."""
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"expected a token of the vocabulary, got {token!r}")
    return found


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text``, tags and special tokens as one id each."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
