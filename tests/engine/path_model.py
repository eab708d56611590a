"""A small random model with ParaThinker's path embeddings, and what it says by transformers and plain torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from forkjoin_scheduler.dialects.dialect import PATH_EMBEDDINGS, Dialect
from tests.engine import stitched_reference
from tests.engine.renamed import PARATHINKER, dialect_for, with_tokens
from tests.engine.stitched_reference import Fork, Run, flatten

NUM_ROWS = 6
#: Two tokens this close may change places by rounding alone.
TIE_NATS = 1e-4


def path_dialect(**changes: Any) -> Dialect:
    """ParaThinker's dialect with three paths, as many as the tokenizer has tags for."""
    dialect = dialect_for("parathinker").model_dump() | {"needs_model_attribute": PATH_EMBEDDINGS}
    return Dialect.model_validate(dialect | changes)


def path_model(folder: Path) -> Path:
    """A checkpoint in ``folder`` as the published one is: a Qwen2, with further weights and one key in its config.

    The rows are large, so that a wrong one shows. The model never chooses a tag, so that answers can be read.
    """
    model = with_tokens(folder, PARATHINKER)
    tags = [token["id"] for token in json.loads((model / "tokenizer.json").read_text())["added_tokens"]]
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=257, pad_token_id=256,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(model)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"][tags] = 0
    for layer in range(config.num_hidden_layers):
        weights[_table(layer)] = torch.randn(NUM_ROWS, config.hidden_size // config.num_attention_heads)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    written = json.loads((model / "config.json").read_text())
    assert written["architectures"] == ["Qwen2ForCausalLM"]
    (model / "config.json").write_text(json.dumps(written | {"max_segments": NUM_ROWS}))
    return model


def _table(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.seg_embeddings.weight"


class PathReference:
    """The checkpoint in ``folder`` in transformers; hooks add the rows to what K and V are projected to."""

    def __init__(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        self._model: Any = Qwen2ForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()
        self._rows = torch.zeros(0, dtype=torch.long)
        for number, layer in enumerate(self._model.model.layers):
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                self._add_rows(projection, weights[_table(number)])

    def _add_rows(self, projection: nn.Module, table: torch.Tensor) -> None:
        def add(module: nn.Module, given: Any, projected: torch.Tensor) -> torch.Tensor:
            of_heads = projected.unflatten(-1, (-1, table.shape[1]))
            return (of_heads + table[self._rows][:, None]).flatten(-2)

        projection.register_forward_hook(add)

    def logprobs(self, context: list[Run | Fork], *, forget_paths: bool = False) -> torch.Tensor:
        """What the model says after each slot. ``forget_paths``: the control, with row 0 for all tokens."""
        flat = flatten(context)
        rows = torch.zeros(len(flat.token_ids), dtype=torch.long)
        for path, slots in flat.slots.items():
            if len(path) > 1 and not forget_paths:  # (part, thread, part of the thread)
                rows[slots] = path[1] + 1
        self._rows = rows
        return stitched_reference.logprobs(self._model, context)


@dataclass
class Told:
    """An answer, taken apart: each token that the model wrote, with its logprob and the slot that predicts it."""

    context: list[Run | Fork]
    #: (the slot that predicts the token, the token, its logprob)
    tokens: list[tuple[int, int, float]]

    def errors(self, rows: torch.Tensor) -> tuple[float, int]:
        """How far logprobs are off at most, and how many tokens ``rows`` of a reference would not choose."""
        off = [abs(float(rows[slot][token]) - logprob) for slot, token, logprob in self.tokens]
        others = [float(rows[s][t]) < float(rows[s].max()) - TIE_NATS for s, t, _ in self.tokens]
        return max(off), sum(others)


def take_apart(engine: Any, prompt: list[int], answer: Any, *, chosen: bool = True) -> Told:
    """Read ``answer``. ``chosen``: whether the model chose its threads' tokens too, not a script."""
    opens = [engine.tokenizer.token_id(f"<think{n}>") for n in (1, 2, 3)]
    ids = answer.token_ids
    join = ids.index(engine.tokenizer.token_id("<summary>"))
    starts = [ids.index(t) for t in opens]
    threads = [ids[a:b] for a, b in zip(starts, [*starts[1:], join], strict=True)]
    context = [Run(prompt), Fork([[Run(t)] for t in threads]), Run(ids[join:])]
    first = join + len(engine.tokenizer.encode(engine.dialect.join.text))
    own = [n for n in range(join) if n not in starts] if chosen else []
    logprobs = [e[t].logprob for e, t in zip(answer.logprobs, ids, strict=True)]
    # in KV order the answer stands as it is, behind the prompt
    return Told(
        context, [(len(prompt) + n - 1, ids[n], logprobs[n]) for n in (*own, *range(first, len(ids)))]
    )
