"""``forkjoin doctor sizing``: what fits a GPU, worked out from a config.json."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forkjoin_scheduler.errors import UsageError
from forkjoin_server.doctor.check import size
from forkjoin_server.doctor.kv_layout import DTYPE_BYTES, KVLayout, kv_layout
from forkjoin_server.doctor.model import weight_bytes
from forkjoin_server.doctor.sizing import GIB, Hardware, Shape, Sizing, size_up
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from forkjoin_server.vllm_seam.start.weights import counted_bytes


def parser() -> argparse.ArgumentParser:
    """Of the command's own flags, by vLLM's names where vLLM has them."""
    made = argparse.ArgumentParser(
        prog="forkjoin doctor sizing",
        description="Estimate how many requests that fork (families) fit the KV cache of a GPU, from a "
        "model's config.json alone.",
    )
    add = made.add_argument
    add(
        "model",
        nargs="?",
        default=str(EMBEDDED_MODEL),
        help="a folder with a config.json, or that file (default: the embedded model)",
    )
    with_default = "(default: %(default)s)"
    add("--gpu-gib", type=float, default=80.0, help=f"memory of one GPU, in GiB {with_default}")
    add(
        "--gpu-memory-utilization",
        type=float,
        default=0.9,
        help=f"fraction of it that vLLM may use {with_default}",
    )
    add("--tensor-parallel-size", type=int, default=1, help=f"number of GPUs of a server {with_default}")
    add(
        "--kv-cache-dtype",
        choices=["auto", *DTYPE_BYTES],
        default="auto",
        help=f"data type of the KV cache; auto: 16 bits {with_default}",
    )
    add("--block-size", type=int, default=16, help=f"tokens per KV block {with_default}")
    add(
        "--weights-gib",
        type=float,
        help="size of the whole model's weights, in GiB (default: of its files, or computed from the config)",
    )
    add("--prompt-tokens", type=int, default=1000, help=f"tokens of a request's prompt {with_default}")
    add("--threads", type=int, default=4, help=f"threads per request {with_default}")
    add("--thread-tokens", type=int, default=500, help=f"tokens per thread {with_default}")
    add("--json", action="store_true", help="print a JSON object")
    return made


def sizing(argv: list[str]) -> str:
    """What the command prints. Raises UsageError for a model or a number that can't be."""
    args = parser().parse_args(argv)
    _check(args)
    path, config = _read(Path(args.model))
    layout = kv_layout(config)
    found = size_up(
        layout,
        dtype_bytes=DTYPE_BYTES.get(args.kv_cache_dtype, 2),
        weight_bytes=_weights(args, path, config),
        hardware=Hardware(
            int(args.gpu_gib * GIB), args.gpu_memory_utilization, num_gpus=args.tensor_parallel_size
        ),
        shape=Shape(args.prompt_tokens, args.threads, args.thread_tokens),
        block_size=args.block_size,
    )
    if args.json:
        return json.dumps(as_object(found), indent=2)
    return "\n".join(f"{name:<14}{said}" for name, said in _lines(args, layout, found))


def as_object(found: Sizing) -> dict[str, int | float]:
    """All that was found, what follows from it included."""
    names = ("num_tokens", "num_families", "num_families_unshared", "threads_per_gpu")
    return asdict(found) | {name: getattr(found, name) for name in names}


def _lines(args: argparse.Namespace, layout: KVLayout, found: Sizing) -> list[tuple[str, str]]:
    heads = "one vector" if layout.is_latent else f"{layout.num_heads} KV heads"
    window = "" if layout.window is None else f", each looking back {layout.window} tokens"
    shape = Shape(args.prompt_tokens, args.threads, args.thread_tokens)
    gpus = f"{args.tensor_parallel_size} x {args.gpu_gib:g} GiB x {args.gpu_memory_utilization:g}"
    family = (
        f"{shape.prompt_tokens:,} tokens of prompt, {shape.num_threads} threads of {shape.thread_tokens:,}: "
        f"{found.blocks_per_family:,} blocks of {found.block_size} tokens"
    )
    return [
        ("model", f"{layout.num_layers} layers of {heads} of {layout.head_size}{window}"),
        ("weights", f"{size(found.weight_bytes_per_gpu)} on each GPU"),
        ("kv_token", f"{found.kv_bytes_per_token:,} bytes on each GPU"),
        ("kv_cache", f"{size(found.kv_bytes_per_gpu)} on each GPU ({gpus}), {found.num_tokens:,} tokens"),
        ("family", family),
        ("at_once", f"{found.num_families:,} families, {found.threads_per_gpu:,.0f} threads a GPU"),
        ("unshared", f"{found.num_families_unshared:,}, if each thread were a request of its own"),
        ("not_counted", "activations and CUDA graphs; no GPU has confirmed these numbers"),
    ]


def _check(args: argparse.Namespace) -> None:
    least = {
        "tensor_parallel_size": 1,
        "block_size": 1,
        "prompt_tokens": 1,
        "threads": 1,
        "thread_tokens": 1,
    }
    for name, at_least in least.items():
        if (given := getattr(args, name)) < at_least:
            raise UsageError(f"--{name.replace('_', '-')}: expected a number from {at_least} on, got {given}")
    if not 0 < args.gpu_memory_utilization <= 1:
        raise UsageError(
            f"--gpu-memory-utilization: expected a part above 0, at most 1, got {args.gpu_memory_utilization}"
        )
    for name in ("gpu_gib", "weights_gib"):
        given = getattr(args, name)
        if given is not None and not 0 < given < 1 << 20:
            raise UsageError(f"--{name.replace('_', '-')}: expected a size above 0, got {given}")


def _read(model: Path) -> tuple[Path, dict[str, Any]]:
    path = model / "config.json" if model.is_dir() else model
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: expected a model's config.json, {error}: name its folder") from error
    if not isinstance(config, dict):
        raise UsageError(
            f"{path}: expected an object, got {type(config).__name__}: name a model's config.json"
        )
    return path, config


def _weights(args: argparse.Namespace, path: Path, config: dict[str, Any]) -> int:
    if args.weights_gib is not None:
        return int(args.weights_gib * GIB)
    of_files = weight_bytes(str(path.parent)) if path.name == "config.json" else 0
    return of_files or counted_bytes(path, config)
