"""Positions of a batch that are off their slots, and keys that are rotated by them.

No operation of ours rotates a key: a token that moves keeps its position, and the model's own kernel rotates
new ones by the positions that it is given. The rotation here is torch's; ``forkjoin verify`` has the model's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from forkjoin_scheduler.tensors import tokens
from forkjoin_scheduler.verify.device import to_device
from forkjoin_scheduler.verify.result import Result

MAX_LEN, BASE, HEADS, SIZE = 4096, 10_000.0, 4, 64
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STYLES = ("neox", "interleaved", "M-RoPE")
#: How many pairs of a head are rotated by each row of M-RoPE's positions.
SECTIONS = (16, 8, 8)

#: A batch: how many tokens of each request a step computes, and runs of what is added to their positions.
NUM_TOKENS = {"a": 1, "b": 5, "c": 300, "d": 1, "e": 4}
RUNS = {"a": [(1, -40)], "c": [(100, 0), (150, 7), (50, -19)], "e": [(4, 900)]}
#: The slot of each request's first token; the last ones are drafts that find no room.
FIRST = {"a": 50, "b": 0, "c": 1000, "d": 77, "e": MAX_LEN - 902}
PADDING = 9


def batch() -> npt.NDArray[np.int64]:
    """The slots of the batch's tokens, and padding."""
    parts = [np.arange(n) + FIRST[i] for i, n in NUM_TOKENS.items()]
    return np.concatenate([*parts, np.zeros(PADDING, dtype=np.int64)])


def expected(slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The positions of the batch's tokens [..., tokens], counted out one by one."""
    added = [o for i, n in NUM_TOKENS.items() for count, o in RUNS.get(i, [(n, 0)]) for _ in range(count)]
    found = slots.copy()
    for at, more in enumerate(added):
        found[..., at] = np.minimum(slots[..., at] + more, MAX_LEN - 1)
    return found


def offset(positions: torch.Tensor, runs: dict[str, list[tuple[int, int]]]) -> None:
    """What the workers do to the positions of a step."""
    ordered = tokens.of_tokens(runs, list(NUM_TOKENS), np.array(list(NUM_TOKENS.values())))
    if ordered is not None:
        tokens.add_offsets(positions, to_device(ordered, positions.device), MAX_LEN)


def check(device: torch.device) -> Iterator[Result]:
    """Positions exactly; rotated keys within what their dtype rounds."""
    for name, slots in (("one row", batch()), ("three rows, for M-RoPE", rows())):
        off = np.abs(_offset_on(device, slots).cpu().numpy() - expected(slots)).max()
        yield Result("offset of positions", name, "int64", float(off), 0)
    for style in STYLES:
        for dtype in DTYPES:
            x = to_device(keys(dtype), device).to(DTYPES[dtype])
            rotated = rotate(x, _offset_on(device, rows()), style)
            yield Result(f"rotation, {style}", "a batch", dtype, off_by(rotated, dtype, style), bound(dtype))


def _offset_on(device: torch.device, slots: npt.NDArray[np.int64]) -> torch.Tensor:
    positions = to_device(slots, device)
    offset(positions, RUNS)
    return positions


def rows() -> npt.NDArray[np.int64]:
    """Three rows for the batch, as M-RoPE has; they differ from each other, as beside an image."""
    return np.stack([batch(), batch() // 2, batch() // 3])


def keys(dtype: str) -> npt.NDArray[np.float32]:
    """Keys of the batch [tokens, heads, size], in numbers that ``dtype`` has."""
    made = np.random.default_rng(3).standard_normal((len(batch()), HEADS, SIZE)).astype(np.float32)
    rounded: npt.NDArray[np.float32] = torch.from_numpy(made).to(DTYPES[dtype]).float().numpy()
    return rounded


def bound(dtype: str) -> float:
    """Four roundings: those of two factors, of the products and of their sum."""
    return float(4 * torch.finfo(DTYPES[dtype]).eps * np.abs(keys(dtype)).max())


def _angles() -> npt.NDArray[np.float64]:
    return np.outer(np.arange(MAX_LEN), BASE ** (-np.arange(0, SIZE, 2) / SIZE))


def angles_on(device: torch.device) -> torch.Tensor:
    """Of each position, for each pair of a head."""
    return to_device(_angles(), device)


def rotate(
    x: torch.Tensor, positions: torch.Tensor, style: str, angles: torch.Tensor | None = None
) -> torch.Tensor:
    """Rotate ``x`` [tokens, heads, size] on its device by ``positions`` [3, tokens].

    ``angles``: those of all positions, where they are on the device already.
    """
    of_row = (angles_on(x.device) if angles is None else angles)[positions]  # [3, tokens, pairs]
    if style == "M-RoPE":
        parts = of_row.split(list(SECTIONS), dim=-1)
        chosen = torch.cat([part[row] for row, part in enumerate(parts)], dim=-1)
    else:
        chosen = of_row[0]
    cos, sin = (f(chosen).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))
    if style == "interleaved":
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def off_by(rotated: torch.Tensor, dtype: str, style: str) -> float:
    """How far ``rotated`` is from complex numbers in fp64 on the host."""
    x, positions, angles = keys(dtype).astype(np.float64), expected(rows()), _angles()
    of_pair = np.repeat(np.arange(3), SECTIONS) if style == "M-RoPE" else np.zeros(SIZE // 2, dtype=np.int64)
    turned = np.exp(1j * angles[positions[of_pair].T, np.arange(SIZE // 2)])[:, None]
    if style == "interleaved":
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * turned
        right = np.stack([z.real, z.imag], axis=-1).reshape(x.shape)
    else:
        z = (x[..., : SIZE // 2] + 1j * x[..., SIZE // 2 :]) * turned
        right = np.concatenate([z.real, z.imag], axis=-1)
    return float(np.abs(rotated.double().cpu().numpy() - right).max())
