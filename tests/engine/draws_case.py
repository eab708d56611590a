"""What threads draw at a temperature, with drafts and without, in a process of its own.

``python -m tests.engine.draws_case ngram 600`` prints a JSON line: how likely draws as different as those of
so many requests are, if both engines draw alike.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

TEMPERATURE = 1.0
#: What the logits are divided by besides, for the model is sure of itself.
FLATTENING = 3.0
BRANCHES = ["1:a=48*36\n", "2:b=57*18\n"]
CLOSING = "\ntotal"
TOKENS_A_BRANCH = 6
#: Of a branch's tokens. The first is drawn without drafts.
DRAWN = slice(1, 3)
#: What was drawn more seldom is counted together.
COMMON = 8


def flattened(folder: Path) -> Path:
    """The embedded model in ``folder``, its logits flattened."""
    from safetensors.torch import load_file, save_file

    from forkjoin_server.start.configuration import EMBEDDED_MODEL

    model = Path(shutil.copytree(EMBEDDED_MODEL, folder / "flattened"))
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] /= FLATTENING
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


def drawn(engine: Any, num: int) -> list[Counter[tuple[int, ...]]]:
    """How often each run of tokens was drawn in each branch and behind the join, in ``num`` answers."""
    prompt = engine.prompt("a=48*36, b=57*18")
    branches = [{"text": text} for text in BRANCHES]
    forkjoin = {"branches": branches, "closing": CLOSING, "max_tokens_per_thread": TOKENS_A_BRANCH}
    ids = [
        engine.add(prompt, engine.params(forkjoin=forkjoin, temperature=TEMPERATURE, seed=i, max_tokens=24))
        for i in range(num)
    ]
    answers = engine.drain()
    headers = [tuple(engine.tokenizer.encode(text)) for text in (*BRANCHES, CLOSING)]
    return [Counter(_behind(tuple(answers[i].token_ids), header) for i in ids) for header in headers]


def _behind(tokens: tuple[int, ...], header: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens that were drawn behind ``header``."""
    ends = [n for n in range(len(header), len(tokens) + 1) if tokens[n - len(header) : n] == header]
    assert ends, (tokens, header)
    return tokens[ends[0] :][DRAWN]


def likelihood(one: Counter[tuple[int, ...]], other: Counter[tuple[int, ...]]) -> float:
    """That two samples of one distribution differ as much (Pearson's chi-squared)."""
    import torch

    common = [run for run, count in (one + other).items() if count >= COMMON]
    assert len(common) >= 3, (one, other)
    seen = torch.tensor(
        [[*(of[run] for run in common), of.total() - sum(of[run] for run in common)] for of in (one, other)],
        dtype=torch.float64,
    )
    seen = seen[:, seen.sum(0) > 0]
    expected = seen.sum(1, keepdim=True) * seen.sum(0, keepdim=True) / seen.sum()
    squared = ((seen - expected) ** 2 / expected).sum()
    freedom = torch.tensor((seen.shape[1] - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, squared / 2))


def main(method: str, num: int) -> dict[str, Any]:
    """Draw on both."""
    from tests.engine.platform import run_engines_alone

    run_engines_alone()
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.drafters import drafter
    from tests.engine.harness import Engine

    samples, num_steps = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = flattened(Path(folder))
        for more in ({}, {"speculative_config": drafter(method, Path(folder))}):
            engine = Engine(
                load("threadweaver"),
                model,
                max_num_seqs=128,
                max_model_len=1024,
                logits_processors=None,
                **more,
            )
            samples.append(drawn(engine, num))
            num_steps.append(len(engine.steps))
    return {
        "likelihoods": [likelihood(one, other) for one, other in zip(*samples, strict=True)],
        "num_runs": [len(one + other) for one, other in zip(*samples, strict=True)],
        "num_steps": num_steps,
    }


if __name__ == "__main__":
    print("CASE " + json.dumps(main(sys.argv[1], int(sys.argv[2]))))
