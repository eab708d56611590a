"""Train the embedded model, from scratch or other weights: ``python -m training.train --out DIR``.

Deterministic in its seed and resumable: ``--resume`` goes on from the last checkpoint of ``--out``.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from forkjoin_bench.progress import working
from training.data import Batch, Sampler
from training.export import export
from training.model import Llama, ModelConfig


@dataclass(frozen=True)
class Recipe:
    """All that decides the result of a training run."""

    steps: int = 5000
    tokens_per_batch: int = 8192
    lr: float = 3e-3
    warmup_steps: int = 100
    #: From this share of the run on, the rate falls linearly to zero.
    decay_from: float = 0.3
    weight_decay: float = 0.01
    seed: int = 20261124


class Trainer:
    """The state of a run: model, optimizers, data order and step, all of it checkpointed."""

    def __init__(self, recipe: Recipe, config: ModelConfig) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.config, self.step = recipe, config, 0
        self.model = Llama(config)
        self.optimizers = make_optimizers(self.model, recipe)
        self.sampler = Sampler(random.Random(recipe.seed), recipe.tokens_per_batch)
        self.batches = self.sampler.batches()

    def train_step(self) -> float:
        """One optimizer step; returns the weighted mean loss of its batch, in nats a token."""
        rate = learning_rate(self.recipe, self.step)
        batch = next(self.batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = batch_loss(self.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, but the data order (replayed from the seed)."""
        return {
            "recipe": asdict(self.recipe),
            "config": asdict(self.config),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``state``. Raises ValueError if it is of another recipe or model."""
        for name, mine in (("recipe", asdict(self.recipe)), ("config", asdict(self.config))):
            if state[name] != mine:
                raise ValueError(
                    f"the checkpoint was made with {name} {state[name]}, this run has {mine}: "
                    "use the same flags, or another --out"
                )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        for _ in range(self.step):
            next(self.batches)


def make_optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, head and norms."""
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Warm up, hold, then fall linearly to zero at the last step."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    decay_start = recipe.decay_from * recipe.steps
    left = (recipe.steps - step) / max(recipe.steps - decay_start, 1)
    return recipe.lr * min(1.0, left)


def batch_loss(model: Llama, batch: Batch) -> Tensor:
    """Weighted cross entropy; only positions with a weight go through the head."""
    wanted = batch.weights > 0
    logits = model.lm_head(model.hidden(batch.inputs)[wanted])
    losses = functional.cross_entropy(logits.float(), batch.targets[wanted], reduction="none")
    weights = batch.weights[wanted]
    return (losses * weights).sum() / weights.sum()


def start_from(trainer: Trainer, folder: Path) -> None:
    """Begin with the exported weights in ``folder``, which must be of the same sizes, as a run's first."""
    tensors = load_file(folder / "model.safetensors")
    trainer.model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items()})


def run(trainer: Trainer, out: Path, *, log_every: int = 50, save_every: int = 250) -> None:
    """Train to the end, logging progress, saving checkpoints and exporting the weights."""
    started, first = time.monotonic(), trainer.step
    average, steps = 0.0, trainer.recipe.steps
    with working("training", steps, num_done=first, console=Console()) as work:
        while trainer.step < steps:
            loss = trainer.train_step()
            work.done()
            average = loss if trainer.step == first + 1 else 0.95 * average + 0.05 * loss
            step = trainer.step
            if step % log_every == 0 or step == steps:
                seconds = (time.monotonic() - started) / (step - first)
                rate = trainer.recipe.tokens_per_batch / seconds
                eta = (steps - step) * seconds / 60
                work.say(f"step {step}/{steps} loss {average:.4f} {rate:.0f} tok/s eta {eta:.0f} min")
            if step % save_every == 0 or step == steps:
                save(trainer, out)


def save(trainer: Trainer, out: Path) -> None:
    """Write the checkpoint atomically, and the exported model beside it."""
    out.mkdir(parents=True, exist_ok=True)
    torch.save(trainer.state(), out / "checkpoint.tmp")
    os.replace(out / "checkpoint.tmp", out / "checkpoint.pt")
    export(trainer.model, out / "model")


def sized(layers: int, heads: int) -> ModelConfig:
    """A model of so many layers and heads, in the proportions of the embedded one."""
    width = heads * ModelConfig.head_dim
    return replace(
        ModelConfig(),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_size=width,
        intermediate_size=3 * width,
    )


def main(argv: list[str] | None = None) -> None:
    """Command line of the training."""
    recipe, sizes = Recipe(), ModelConfig()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/training"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument(
        "--start-from", type=Path, help="exported weights to begin with, in place of random ones"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=recipe.steps)
    parser.add_argument("--tokens-per-batch", type=int, default=recipe.tokens_per_batch)
    parser.add_argument("--lr", type=float, default=recipe.lr)
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--layers", type=int, default=sizes.num_hidden_layers)
    parser.add_argument("--heads", type=int, default=sizes.num_attention_heads, help="of 32 each: the width")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = Recipe(steps=args.steps, tokens_per_batch=args.tokens_per_batch, lr=args.lr, seed=args.seed)
    trainer = Trainer(recipe, sized(args.layers, args.heads))
    if args.start_from:
        start_from(trainer, args.start_from)
    if args.resume:
        trainer.load(torch.load(args.out / "checkpoint.pt", weights_only=True))
    run(trainer, args.out)


if __name__ == "__main__":
    main()
