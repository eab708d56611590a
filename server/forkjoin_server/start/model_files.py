"""What the files beside a model say of its dialect. They are read without vLLM, torch or weights.

A folder is read as it is. A name is looked up in the hub's cache and, unless HF_HUB_OFFLINE is set, on the
hub: the same small files that vLLM looks up when it starts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from forkjoin_scheduler.dialects.fitting import ModelFacts

#: Those of a tokenizer. Each format names added tokens in some of them.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")

#: Gives the text of a file by its name; None: there is none.
_Texts = Callable[[str], str | None]


def read(
    model: str,
    *,
    tokenizer: str | None = None,
    revision: str | None = None,
    tokenizer_revision: str | None = None,
    chat_template: str | None = None,
) -> ModelFacts | None:
    """What is known of ``model``; None where it has no tokenizer to be read.

    ``chat_template``, a file or a text, stands in the place of the model's own.
    """
    try:
        own = _texts(model, revision)
        its = own if tokenizer is None else _texts(tokenizer, tokenizer_revision)
        files = {name: _object(its(name)) for name in _TOKENIZER_FILES}
        if not any(files.values()):
            return None
        template = _own_template(its, files["tokenizer_config.json"]) if chat_template is None else ""
        config = _object(own("config.json"))
    except _UnreachableError:
        return None
    if chat_template is not None:
        template = _text_of(Path(chat_template)) or chat_template
    base = config.get("_name_or_path")
    names = [_name(model), *([_name(base)] if isinstance(base, str) and base else [])]
    architectures = config.get("architectures")
    names += [str(name) for name in architectures] if isinstance(architectures, list) else []
    return ModelFacts(tuple(names), frozenset(_added(files)), template)


class _UnreachableError(Exception):
    """The hub does not answer, or has no such model for us: the other files would fail in the same way."""


def _texts(name: str, revision: str | None) -> _Texts:
    if Path(name).is_dir():
        return lambda file: _text_of(Path(name, file))
    # vLLM takes other names too: of ModelScope, of object stores, of single files.
    is_hubs = _HUB_NAME.fullmatch(name) and os.environ.get("VLLM_USE_MODELSCOPE", "").lower() not in (
        "1",
        "true",
    )
    return partial(_from_hub, name, revision) if is_hubs else lambda file: None


def _from_hub(name: str, revision: str | None, file: str) -> str | None:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return _text_of(Path(hf_hub_download(name, file, revision=revision)))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
            raise _UnreachableError from error
        return None
    except Exception as error:  # of whatever kind the hub and the network raise
        raise _UnreachableError from error


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None


def _object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _added(files: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Added tokens, in whichever of the ``files`` they are named."""
    yield from files["added_tokens.json"]
    decoder = files["tokenizer_config.json"].get("added_tokens_decoder")
    lists = [
        files["tokenizer.json"].get("added_tokens"),
        files["special_tokens_map.json"].get("additional_special_tokens"),
        list(decoder.values()) if isinstance(decoder, dict) else None,
    ]
    for tokens in lists:
        for token in tokens if isinstance(tokens, list) else []:
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                yield content


def _own_template(texts: _Texts, tokenizer_config: dict[str, Any]) -> str:
    jinja, in_json = (texts(name) for name in _TEMPLATE_FILES)
    templates = [jinja, _object(in_json).get("chat_template"), tokenizer_config.get("chat_template")]
    # Some tokenizers have several, by name.
    return "\n".join(t if isinstance(t, str) else json.dumps(t, ensure_ascii=False) for t in templates if t)


def _name(model: str) -> str:
    """What ``model`` is called: the end of its path; in the hub's cache, the name that it has on the hub."""
    path = Path(model).absolute() if Path(model).is_dir() else Path(model)
    return path.parts[-3].rpartition("--")[2] if path.parent.name == "snapshots" else path.name
