"""Tokens that cost a policy its entropy: those where log-prob and advantage go together most (arXiv 2505.22617). Their
covariance is (A - mean A) (log pi - mean log pi), with means over what the policy wrote in the step. For the `share` of
them where it is largest,

    clip   the advantage becomes 0: they are left out of the surrogate, and stay in the denominator
    kl     0.1 |log pi - log pi_old| is added to a plain surrogate

A penalty of |log rho| has the gradient of an advantage that is sign(log rho) coef / rho smaller, so `kl` is written
into the advantages as well: the gradient is exact, the reported loss lacks the penalty. At ratio 1 it has none: it
needs several updates a rollout.

verl draws its share at random among tokens with a covariance in (1, 5) and leaves out those that are clipped already;
the paper, and we, take the largest ones, so that a step can be made again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from aurify.types import Datum

MAX_LOG_RATIO = 20.0


def strip_covariance(
    data: Sequence[Datum],
    logprobs: Sequence[Sequence[float]],
    share: float,
    kl_coef: float | None = None,
    over_ranks: Callable[[Sequence[float]], list[float]] = list,
) -> list[Datum]:
    """logprobs: of the policy of now. kl_coef: None clips."""
    positions = [
        (k, t)
        for k, datum in enumerate(data)
        for t, weight in enumerate(datum.weights)
        if weight and datum.source == "policy" and not (datum.guided and datum.guided[t])
    ]
    rows = [list(datum.advantages or ()) for datum in data]
    values, gains = [rows[k][t] for k, t in positions], [logprobs[k][t] for k, t in positions]
    every_value, every_gain = over_ranks(values), over_ranks(gains)
    if not every_value:
        return list(data)
    mean_value, mean_gain = (math.fsum(row) / len(row) for row in (every_value, every_gain))
    covariances = [(a - mean_value) * (x - mean_gain) for a, x in zip(every_value, every_gain, strict=True)]
    least = sorted(covariances, reverse=True)[max(1, round(share * len(covariances))) - 1]
    for (k, t), a, x in zip(positions, values, gains, strict=True):
        if (a - mean_value) * (x - mean_gain) < least:
            continue
        if kl_coef is None:
            rows[k][t] = 0.0
            continue
        old = data[k].old_logprobs
        assert old is not None
        change = max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, x - old[t]))
        rows[k][t] -= kl_coef * math.copysign(1.0, change) * math.exp(-change) if change else 0.0
    return [replace(datum, advantages=row) for datum, row in zip(data, rows, strict=True)]
