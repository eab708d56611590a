"""Whether tokens that were chosen after a fork or a join are what a reference would choose.

The reference reads the same tokens and says how likely each was, and its own best one. So a token that
differs at a near-tie does not change what is compared after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from forkjoin_scheduler.verify.result import Result

#: What rounding may move a log-probability by, in nats: an engine computes in other parts than its reference.
BOUNDS = {"float32": 5e-3, "float16": 0.2, "bfloat16": 0.75}
#: With a KV cache in fp8.
FP8_BOUND = 1.5

#: Of a token that was chosen: its log-probability, and that of the best one.
Likely = tuple[float, float]


def bound_of(dtype: str, cache_dtype: str = "auto") -> float:
    """The bound of a model in ``dtype`` with this KV cache."""
    return FP8_BOUND if cache_dtype.startswith("fp8") else BOUNDS.get(dtype, BOUNDS["bfloat16"])


def judge(
    name: str, case: str, dtype: str, bound: float, own: Sequence[float], said: Sequence[Likely]
) -> list[Result]:
    """Compare the log-probabilities that tokens had (``own``) with what the reference ``said`` of them.

    Two results: how far they are apart, and how much less likely than its best the reference finds a token.
    """
    if not own or len(own) != len(said):
        told = f"expected the reference to judge {len(own)} tokens, it judged {len(said)}"
        return [Result(name, case, dtype, float("inf"), bound, told)]
    less_likely = [best - likely for likely, best in said]
    num_ties = sum(0 < less <= bound for less in less_likely)
    note = f"{len(own)} tokens, {num_ties} near-ties chosen otherwise" if num_ties else f"{len(own)} tokens"
    return [
        Result(f"{name}: log-probabilities", case, dtype, apart(own, said), bound, f"{len(own)} tokens"),
        Result(f"{name}: greedy tokens", case, dtype, _largest(less_likely), bound, note),
    ]


def apart(own: Sequence[float], said: Sequence[Likely]) -> float:
    """The largest difference between log-probabilities of the same tokens, in nats; NaN if one is."""
    return _largest([abs(mine - likely) for mine, (likely, _) in zip(own, said, strict=True)])


def _largest(values: Sequence[float]) -> float:
    """NaN if one is."""
    return math.nan if any(map(math.isnan, values)) else max(values)
