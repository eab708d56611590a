"""The embedded model with another dialect's control tokens in the place of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from forkjoin_server.configuration import EMBEDDED_MODEL

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
PARATHINKER = {
    "<Thread>": "<think1>", "</Thread>": "</think1>", "<Outlines>": "<think2>", "</Outlines>": "</think2>",
    "<Outline>": "<think3>", "</Outline>": "</think3>", "<Conclusion>": "<summary>", "</Conclusion>": "</summary>",
}  # fmt: skip


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
