"""What a step will take, learnt from the engine's own steps.

seconds = base + a * sequences + b * tokens + c * context, fitted by recursive least squares that
forgets: what the machine did a thousand steps ago counts for little. ``tokens`` are all that the
step computes, ``context`` is the KV that it reads, in tokens. No coefficient is negative: more
work never takes less time.
"""

from __future__ import annotations

from dataclasses import dataclass

_FORGET = 0.995
_UNSURE = 1e4
#: A step in which something else ran (a compilation, a pause) tells nothing of what the next will take.
_OUTLIER = 5.0
_WARM_UP = 16


@dataclass(frozen=True)
class Load:
    """What a step computes."""

    num_sequences: int
    num_tokens: int
    num_context: int = 0

    def plus(self, num_context: int) -> Load:
        """And one more sequence that decodes a token on ``num_context`` tokens."""
        return Load(self.num_sequences + 1, self.num_tokens + 1, self.num_context + num_context)

    def _features(self) -> tuple[float, ...]:
        # Of about one size each, for the numbers' sake.
        return (1.0, self.num_sequences / 8, self.num_tokens / 64, self.num_context / 8192)


NOTHING = Load(0, 0)


class StepCost:
    """An online fit. ``observe`` steps, then ``predict`` others."""

    def __init__(self) -> None:
        n = len(NOTHING._features())
        self._weights = [0.0] * n
        self._covariance = [[_UNSURE * (i == j) for j in range(n)] for i in range(n)]
        self.num_observed = 0

    @property
    def is_ready(self) -> bool:
        """Whether enough steps were seen for a prediction to mean anything."""
        return self.num_observed >= _WARM_UP

    def predict(self, load: Load) -> float:
        """Seconds that a step of ``load`` will take."""
        return sum(max(w, 0.0) * x for w, x in zip(self._weights, load._features(), strict=True))

    def observe(self, load: Load, seconds: float) -> None:
        """A step of ``load`` took ``seconds``. One that took far longer than predicted is passed by."""
        if self.is_ready and seconds > _OUTLIER * max(self.predict(load), 1e-6):
            return
        x = load._features()
        gain = [sum(p * xj for p, xj in zip(row, x, strict=True)) for row in self._covariance]
        scale = _FORGET + sum(g * xi for g, xi in zip(gain, x, strict=True))
        error = seconds - sum(w * xi for w, xi in zip(self._weights, x, strict=True))
        self._weights = [w + g * error / scale for w, g in zip(self._weights, gain, strict=True)]
        trace = sum(self._covariance[i][i] for i in range(len(x)))
        # Without new kinds of steps forgetting would blow the covariance up.
        forget = _FORGET if trace < len(x) * _UNSURE else 1.0
        self._covariance = [
            [(p - gi * gj / scale) / forget for p, gj in zip(row, gain, strict=True)]
            for row, gi in zip(self._covariance, gain, strict=True)
        ]
        self.num_observed += 1
