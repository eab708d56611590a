"""What a step will take, learnt from the engine's own steps.

seconds = base + a * sequences + b * tokens + c * context, fitted by least squares that forgets: what
the machine did a thousand steps ago counts for little. ``tokens`` are all that the step computes,
``context`` is the KV that it reads, in tokens. No coefficient is negative: more work never takes less
time. One that would be is left out of the fit, which then finds the others again: sequences and
context grow together, and with one of them merely cut off at zero the other would count for both.
"""

from __future__ import annotations

from dataclasses import dataclass

_FORGET = 0.995
#: Holds coefficients near zero until steps have distinguished them.
_RIDGE = 1e-4
#: A step in which something else ran (a compilation, a pause) says nothing about the next one's time.
_OUTLIER = 5.0
#: So many of them one after the other are no accident.
_OUTLIERS_IN_A_ROW = 8
_WARM_UP = 16


@dataclass(frozen=True)
class Load:
    """What a step computes."""

    num_sequences: int
    num_tokens: int
    num_context: int = 0

    def plus(self, num_context: int, num_tokens: int = 1) -> Load:
        """And one more sequence that computes ``num_tokens`` behind ``num_context`` tokens."""
        return Load(self.num_sequences + 1, self.num_tokens + num_tokens, self.num_context + num_context)

    def _features(self) -> tuple[float, ...]:
        # Of about one size each, for the numbers' sake.
        return (1.0, self.num_sequences / 8, self.num_tokens / 64, self.num_context / 8192)


NOTHING = Load(0, 0)


class StepCost:
    """An online fit. ``observe`` steps, then ``predict`` others."""

    def __init__(self) -> None:
        n = len(NOTHING._features())
        # The normal equations: sums over the steps, the old ones faded, of x·xᵀ and of x·seconds.
        self._squares = [[0.0] * n for _ in range(n)]
        self._products = [0.0] * n
        self._weights: list[float] | None = None
        self.num_observed = 0
        self._num_passed_by = 0

    @property
    def is_ready(self) -> bool:
        """Whether enough steps were seen for a prediction to mean anything."""
        return self.num_observed >= _WARM_UP

    def predict(self, load: Load) -> float:
        """Seconds that a step of ``load`` will take."""
        if self._weights is None:
            self._weights = self._fit()
        return sum(w * x for w, x in zip(self._weights, load._features(), strict=True))

    def observe(self, load: Load, seconds: float) -> None:
        """A step of ``load`` took ``seconds``. One that took far longer than predicted is passed by.

        Not when it goes on: then this is what steps take now.
        """
        if self.is_ready and seconds > _OUTLIER * max(self.predict(load), 1e-6):
            self._num_passed_by += 1
            if self._num_passed_by < _OUTLIERS_IN_A_ROW:
                return
        else:
            self._num_passed_by = 0
        x = load._features()
        for row, xi in zip(self._squares, x, strict=True):
            row[:] = [_FORGET * old + xi * xj for old, xj in zip(row, x, strict=True)]
        self._products = [_FORGET * old + xi * seconds for old, xi in zip(self._products, x, strict=True)]
        self._weights = None
        self.num_observed += 1

    def _fit(self) -> list[float]:
        """The coefficients, none of them negative."""
        kept = list(range(len(self._products)))
        while kept:
            found = _solved(
                [[self._squares[i][j] + _RIDGE * (i == j) for j in kept] for i in kept],
                [self._products[i] for i in kept],
            )
            lowest = min(found)
            if lowest >= 0:
                break
            del kept[found.index(lowest)]
        weights = [0.0] * len(self._products)
        for i, weight in zip(kept, found, strict=True):
            weights[i] = weight
        return weights


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """X of ``matrix`` x = ``right``, for a symmetric positive definite matrix, by elimination."""
    rows = [[*row, r] for row, r in zip(matrix, right, strict=True)]
    n = len(rows)
    for i in range(n):
        pivot = rows[i]
        for k in range(i + 1, n):
            factor = rows[k][i] / pivot[i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], pivot, strict=True)]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum(rows[i][j] * x[j] for j in range(i + 1, n))) / rows[i][i]
    return x
