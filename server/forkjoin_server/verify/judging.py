"""Whether tokens that were chosen after a fork or a join are what a reference would choose.

The reference reads the same tokens and says how likely each was, and its own best one. So a token that
differs at a near-tie does not change what is compared after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from forkjoin_scheduler.verify.result import Result


class Bound(NamedTuple):
    """What rounding may move log-probabilities by, in nats: of one token, and on average.

    An engine computes in other parts than its reference. One unsure token may move far; an error of
    positions, masks or KV moves all that follow it, so the average tells them apart where rounding is coarse.
    """

    largest: float
    mean: float

    def is_kept(self, apart: Apart) -> bool:
        """Whether this difference may be rounding. NaN may not."""
        return apart.largest <= self.largest and apart.mean <= self.mean


class Apart(NamedTuple):
    """How far log-probabilities of the same tokens are apart, in nats; NaN if one is no number."""

    largest: float
    mean: float


BOUNDS = {"float32": Bound(5e-3, 1e-3), "float16": Bound(0.2, 0.03), "bfloat16": Bound(0.75, 0.1)}
#: With a KV cache in fp8.
FP8_BOUND = Bound(1.5, 0.3)

#: Of a token that was chosen: its log-probability, and that of the best one.
Likely = tuple[float, float]


def bound_of(dtype: str, cache_dtype: str = "auto") -> Bound:
    """The bound of a model in ``dtype`` with this KV cache."""
    return FP8_BOUND if cache_dtype.startswith("fp8") else BOUNDS.get(dtype, BOUNDS["bfloat16"])


def judge(
    name: str, case: str, dtype: str, bound: Bound, own: Sequence[float], said: Sequence[Likely]
) -> list[Result]:
    """Compare the log-probabilities that tokens had (``own``) with what the reference ``said`` of them.

    Three results: how far they are apart at most and on average, and how much less likely than its best the
    reference finds a token.
    """
    num_tokens = f"{len(own)} tokens"
    if not own or len(own) != len(said):
        told = f"expected the reference to judge {num_tokens}, it judged {len(said)}"
        return [Result(name, case, dtype, float("inf"), bound.largest, told)]
    less_likely, found = [best - likely for likely, best in said], apart(own, said)
    num_ties = sum(0 < less <= bound.largest for less in less_likely)
    note = f"{num_tokens}, {num_ties} near-ties chosen otherwise" if num_ties else num_tokens
    return [
        Result(f"{name}: log-probabilities", case, dtype, found.largest, bound.largest, num_tokens),
        Result(f"{name}: log-probabilities, mean", case, dtype, found.mean, bound.mean, num_tokens),
        Result(f"{name}: greedy tokens", case, dtype, _largest(less_likely), bound.largest, note),
    ]


def sure(
    num: int, said: Sequence[Likely] | None, unrounded: Sequence[Likely] | None, bound: Bound
) -> list[int]:
    """The places, of ``num`` tokens, of those that rounding alone leaves where they are.

    The reference in 16 bits (``said``) and in 32 shows it; without both, all are. A model that copies may
    take another token to copy for the last bit of a number, and be nats off.
    """
    if said is None or unrounded is None or len(said) != num:
        return [*range(num)]
    pairs = zip(said, unrounded, strict=True)
    return [i for i, ((rounded, _), (exact, _)) in enumerate(pairs) if abs(rounded - exact) <= bound.mean]


def apart(own: Sequence[float], said: Sequence[Likely]) -> Apart:
    """How far the reference is off."""
    differences = [abs(mine - likely) for mine, (likely, _) in zip(own, said, strict=True)]
    return Apart(_largest(differences), fmean(differences))


def _largest(values: Sequence[float]) -> float:
    """NaN if one is."""
    return math.nan if any(map(math.isnan, values)) else max(values)
