"""Which answers keep to an SLO, as TAPER counts them (arXiv 2605.06914)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from forkjoin_bench.comparison.measures import quantile
from forkjoin_bench.comparison.traffic import Outcome
from forkjoin_bench.inputs.script import Compiled
from forkjoin_bench.simulator.results.measures import Slo
from forkjoin_bench.systems.base import Answer


def kept_to(slo: Slo, outcome: Outcome, requests: Sequence[Compiled]) -> dict[str, float]:
    """How well the answers to ``requests`` keep to ``slo``, by the names of the report's columns.

    ``in_time``: the share of them; ``good_per_s``: so many a second; ``plain_p95_ms``: milliseconds a token
    after the first, of requests that do not fork; ``family_s``: seconds to the answer, of those that do.
    """
    pairs = list(zip(outcome.answers, requests, strict=True))
    num_good = sum(_is_good(answer, request, slo) for answer, request in pairs)
    values = {"in_time": num_good / len(pairs), "good_per_s": num_good / outcome.wall_s}
    right = [(answer, request) for answer, request in pairs if answer.is_right]
    if plain := [_token_s(answer, request) for answer, request in right if not request.forks]:
        values["plain_p95_ms"] = 1e3 * quantile(plain, 0.95)
    if families := [answer.seconds for answer, request in right if request.forks]:
        values["family_s"] = statistics.fmean(families)
    return values


def _is_good(answer: Answer, request: Compiled, slo: Slo) -> bool:
    first_s = answer.first_s
    if not answer.is_right or first_s is None:
        return False
    return first_s <= slo.ttft_s and _token_s(answer, request) <= slo.token_s


def _token_s(answer: Answer, request: Compiled) -> float:
    """Mean seconds a token of the critical path, after the first."""
    first_s = answer.first_s
    assert first_s is not None, "it was streamed"
    return (answer.seconds - first_s) / max(request.num_critical - 1, 1)
