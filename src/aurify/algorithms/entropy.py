"""What a method may do about entropy: keep that of the policy near a target by moving the weight of its bonus
(Skywork-OR1, arXiv 2505.22312), or learn from the least certain tokens alone (arXiv 2506.01939)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aurify.types import Datum, Metrics

STEP, HIGHEST = 0.005, 1.0  # of the weight


@dataclass
class EntropyController:
    """After each step the weight goes up by 0.005 if the entropy was below the target, else down, within [0, 1]. It
    acts only while the entropy is not above the target."""

    target: float
    coef: float
    active: bool = True

    def apply(self, algorithm: Any) -> Any:
        """The algorithm of the next step: a GRPO, or one of its relatives."""
        return replace(algorithm, entropy_coef=self.coef if self.active else 0.0)

    def observe(self, metrics: Metrics) -> Metrics:
        """Takes the entropy of a step, in nats a token, from its metrics, and returns what to report. A step that
        trained nothing has none."""
        entropy = metrics.get("loss/entropy", math.nan)
        if math.isfinite(entropy):
            self.coef = min(HIGHEST, max(0.0, self.coef + (STEP if entropy < self.target else -STEP)))
            self.active = entropy <= self.target
        return {"optim/entropy_coef": self.coef}

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef, "active": self.active}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coef, self.active = state["coef"], state["active"]


def keep_top_entropy(
    data: Sequence[Datum],
    entropies: Sequence[Sequence[float]],
    share: float,
    over_ranks: Callable[[Sequence[float]], list[float]] = list,
) -> list[Datum]:
    """The data with advantage 0 on all trained tokens but the `share` of highest entropy."""
    own = [
        value
        for datum, row in zip(data, entropies, strict=True)
        for value, w in zip(row, datum.weights, strict=True)
        if w
    ]
    trained = sorted(over_ranks(own), reverse=True)
    if not trained:
        return list(data)
    least = trained[max(1, round(share * len(trained))) - 1]
    return [
        replace(
            datum,
            advantages=[a if e >= least else 0.0 for a, e in zip(datum.advantages or [], row, strict=True)],
        )
        for datum, row in zip(data, entropies, strict=True)
    ]
