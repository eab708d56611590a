"""The embedded model with another dialect's control tokens in the place of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_server.start.configuration import EMBEDDED_MODEL

MULTIVERSE = {
    "<Outlines>": "<Goal>", "</Outlines>": "</Goal>", "<Thread>": "<Path>", "</Thread>": "</Path>",
}  # fmt: skip
NPR = {
    "<Outlines>": "<guideline>", "</Outlines>": "</guideline>", "<Outline>": "<plan>", "</Outline>": "</plan>",
    "<Thread>": "<step>", "</Thread>": "</step>", "<Conclusion>": "<takeaway>", "</Conclusion>": "</takeaway>",
}  # fmt: skip
PARALLEL_R1 = {
    "<Thread>": "<Path>", "</Thread>": "</Path>", "<Outlines>": "<Summary>", "</Outlines>": "</Summary>",
}  # fmt: skip
APAR = {"<Thread>": "[SplitMask]", "</Thread>": "[SplitSop]"}
HPD = {"<Thread>": "<FORK>", "</Thread>": "<CHILD>"}
ASPD = {
    "<Outline>": "<|title|>", "</Outline>": "<|/title|>", "<Thread>": "<|branch|>", "</Thread>": "<|/branch|>",
    "</Outlines>": "<|para|>", "<Outlines>": "<|/para|>",
}  # fmt: skip
MEDVERSE = {
    "<Outlines>": "<Plan>", "</Outlines>": "</Plan>", "<Thread>": "<Step>", "</Thread>": "</Step>",
    "<Parallel>": "<Execution>", "</Parallel>": "</Execution>",
}  # fmt: skip
PARATHINKER = {
    "<Thread>": "<think1>", "</Thread>": "</think1>", "<Outlines>": "<think2>", "</Outlines>": "</think2>",
    "<Outline>": "<think3>", "</Outline>": "</think3>", "<Conclusion>": "<summary>", "</Conclusion>": "</summary>",
}  # fmt: skip

#: What is renamed for each dialect; the model speaks the others as it is.
FOR_DIALECT = {
    "multiverse": MULTIVERSE,
    "npr": NPR,
    "parallel-r1": PARALLEL_R1,
    "parathinker": PARATHINKER,
    "aspd": ASPD,
    "medverse": MEDVERSE,
    "medverse-eval": MEDVERSE,
    "apar": APAR,
    "hpd": HPD,
}


#: The built-in dialects, but for those that differ from another by policies only.
NO_VARIANTS = [name for name in builtin_names() if load(name).variant_of is None]


@cache
def dialect_for(name: str) -> Dialect:
    """As it is; but of ParaThinker so many paths as the model has tokens for, without their embeddings.

    And of PaCoRe more rounds, whose prompts have few words: contexts are short here.
    """
    dialect = load(name)
    if name == "pacore":
        short = {"then": [2], "prompt": "{prompt}:{references}", "reference": " {n}={returned}"}
        own = {"join": dialect.join.model_dump() | short, "width": 3}
        return Dialect.model_validate(dialect.model_dump() | own)
    if name != "parathinker":
        return dialect
    own = {"needs_model_attribute": None, "width": 3, "tags": ("<summary>", "</summary>")}
    own["swaps"] = {tag: instead for tag, instead in dialect.swaps.items() if tag != "<think4>"}
    return Dialect.model_validate(dialect.model_dump() | own)


def model_for(name: str, new_folder: Callable[[str], Path]) -> Path:
    """The model that speaks the dialect ``name``, in a ``new_folder`` if tokens have to be renamed."""
    return with_tokens(new_folder(name), FOR_DIALECT[name]) if name in FOR_DIALECT else EMBEDDED_MODEL


def with_tokens(folder: Path, renamed: dict[str, str]) -> Path:
    """The embedded model in ``folder``, its tokens ``renamed``."""
    model = Path(shutil.copytree(EMBEDDED_MODEL, folder / "model"))
    path = model / "tokenizer.json"
    text = path.read_text()
    for own, other in renamed.items():
        assert f'"{own}"' in text
        text = text.replace(f'"{own}"', f'"{other}"')
    path.write_text(text)
    return model


def with_more_tokens(folder: Path, tokens: list[str]) -> Path:
    """The embedded model in ``folder``, ``tokens`` added to its tokenizer: for tests without a model."""
    model = Path(shutil.copytree(EMBEDDED_MODEL, folder / "model"))
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = tokenizer["added_tokens"]
    first = max(token["id"] for token in added) + 1
    added += [added[-1] | {"id": first + n, "content": text} for n, text in enumerate(tokens)]
    path.write_text(json.dumps(tokenizer))
    return model
