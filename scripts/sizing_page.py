"""Write docs/sizing.md with the numbers of ``forkjoin doctor sizing``: ``make sizing-page``.

A test fails when the page is stale.
"""

from __future__ import annotations

import json
from pathlib import Path

from forkjoin_server.doctor.sizing_command import sizing

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/sizing.md"
SHAPES = ROOT / "configs/sizing"
#: The page's examples, by the name of the model's config.
MODELS = ("1.5b-qwen2.5", "4b-qwen3", "7b-llama-2", "8b-qwen3", "14b-qwen3", "32b-qwen2.5")

BEGINNING = """<!-- Made by `make sizing-page`: change scripts/sizing_page.py. -->
# Sizing for GPUs

How many requests that fork fit one GPU? The KV cache decides it. `forkjoin doctor sizing` works it out from
a model's `config.json`, without a GPU and without the weights. **No GPU has confirmed these numbers**: this
project has been run on CPUs only."""

FLAGS = """## From families to flags

- `--max-num-seqs`: as many as the threads that fit, but no more than a step of your GPU decodes at the
  speed that you want. A parked parent takes no slot.
- `--max-model-len`: a prompt with all its threads, joined. A lower limit does not make more room; it only
  refuses longer requests.
- Requests beyond what fits wait (`--admission family`), or are refused ([Configuration](configuration.md)).
- A dialect with a stitched join needs room for twice `--max-model-len`.

Then watch `vllm:kv_cache_usage_perc` and `forkjoin:threads_waiting` ([Tuning](tuning.md))."""

LIMITS = """## What can't be worked out

The command refuses, and says so, for models whose layers do not all look back equally far (Gemma 3,
gpt-oss), with state space layers, with an indexer (DeepSeek V3.2), and for quantised weights unless their
files are beside the config or `--weights-gib` gives their size. A window that all layers share is counted."""


def page() -> str:
    """The text of the page."""
    sections = (
        BEGINNING, _one_model(), _model_sizes(), _shared_prompts(), _several_gpus(), FLAGS, LIMITS
    )  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _one_model() -> str:
    """What the command says of one model, and what that means."""
    return f"""## One model

The folder [configs/sizing](../configs/sizing) has the shapes of published models. Give your own folder or
`config.json` in their place:

{_command(8, "8b-qwen3")}

{_indented(_said(8, "8b-qwen3"))}

- `kv_token` is layers × KV heads × 2 (key and value) × the size of a head × the bytes of a number.
- `kv_cache` is what vLLM may use of the GPU (`--gpu-memory-utilization`), less the weights.
- A family holds its prompt once. Each thread holds its own tokens, and a copy of the block that the prompt
  fills in part.
- `unshared` is what you get from one request for each thread: each holds the prompt again.

vLLM also needs memory for each step (activations, CUDA graphs), which it measures when it starts. The
estimate does not subtract it: expect fewer blocks."""


def _model_sizes() -> str:
    """The families that fit, by model."""
    return f"""## Model sizes

Families of 1,000 tokens of prompt and 8 threads of 500 tokens, on one GPU of 80 GiB:

{_sizes()}

Each row is this command with the row's config:

{_command(8, "CONFIG", *("--json",))}

- The 7B model has as many KV heads as heads. Models since then share KV heads (GQA): a token of the 8B
  model takes less than a third of the bytes.
- A smaller model gains twice: its weights leave more room, and its tokens are smaller.
- With `--kv-cache-dtype fp8`, a token takes half the bytes. A stitched join does not run on it
  ([Dialects](dialects.md))."""


def _shared_prompts() -> str:
    """What sharing saves, by the length of the prompt."""
    return f"""## Prompts that threads share

The longer the prompt, the more sharing saves. The 8B model, 8 threads of 500 tokens:

{_prompts()}

Each row is the command above with `--prompt-tokens`."""


def _several_gpus() -> str:
    """The families that fit, by the number of GPUs."""
    return f"""## Several GPUs

Tensor parallelism splits the weights and the KV heads. The 32B model:

{_gpus()}

Each row is the command above with `--tensor-parallel-size`. With more GPUs than KV heads, several GPUs hold
the same head, and the gain ends. MLA has one vector for all heads: each GPU holds all of it."""


def _command(num_threads: int, model: str, *more: str) -> str:
    return "    " + " ".join(
        [
            "forkjoin doctor sizing",
            *more,
            "--gpu-gib 80 --threads",
            str(num_threads),
            f"configs/sizing/{model}.json",
        ]
    )


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _said(num_threads: int, model: str, *more: str) -> str:
    flags = ["--gpu-gib", "80", "--threads", str(num_threads), *more]
    return sizing([*flags, str(SHAPES / f"{model}.json")])


def _found(model: str, *more: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(_said(8, model, "--json", *more))
    return found


def _sizes() -> str:
    lines = [
        "| config | weights | KV a token | tokens of KV | families | threads | families, unshared |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        found = _found(model)
        lines.append(
            f"| `{model}` | {found['weight_bytes_per_gpu'] / (1 << 30):.1f} GiB "
            f"| {found['kv_bytes_per_token'] // 1024} KiB | {found['num_tokens']:,} "
            f"| {found['num_families']:,} | {found['threads_per_gpu']:,.0f} "
            f"| {found['num_families_unshared']:,} |"
        )
    return "\n".join(lines)


def _prompts() -> str:
    lines = ["| prompt | families | families, unshared | gain |", "|---|---|---|---|"]
    for tokens in (100, 1000, 4000, 16000):
        found = _found("8b-qwen3", "--prompt-tokens", str(tokens))
        gain = found["blocks_unshared"] / found["blocks_per_family"]
        lines.append(
            f"| {tokens:,} tokens | {found['num_families']:,} | {found['num_families_unshared']:,} "
            f"| {gain:.1f} times |"
        )
    return "\n".join(lines)


def _gpus() -> str:
    lines = [
        "| GPUs | weights a GPU | KV a token and GPU | families | threads a GPU |",
        "|---|---|---|---|---|",
    ]
    for num_gpus in (1, 2, 4, 8, 16):
        found = _found("32b-qwen2.5", "--tensor-parallel-size", str(num_gpus))
        lines.append(
            f"| {num_gpus} | {found['weight_bytes_per_gpu'] / (1 << 30):.1f} GiB "
            f"| {found['kv_bytes_per_token'] // 1024} KiB | {found['num_families']:,} "
            f"| {found['threads_per_gpu']:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
