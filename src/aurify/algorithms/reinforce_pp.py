"""REINFORCE++ (arXiv 2501.03262): rewards are normalised over all tokens of the step instead of over groups, so that a
group may have one answer. With `baseline` the mean of the group is taken off first, and no group's own deviation is
divided by; a group without spread has advantage 0 then, though the normalisation of the step, whose mean over tokens
is not 0, would give it another one. A KL penalty goes into the loss (kl_coef with k2 is the paper's choice for the
baseline form), or is taken off the reward (the paper's plain form): the return of a token is the reward less
reward_kl_coef times log pi_old - log pi_ref of it and all later tokens, and it is these returns that are
normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

from aurify.algorithms.effects import NEVER, Effect, Effects
from aurify.algorithms.estimators import center_rewards, has_reward_spread, whiten_advantages
from aurify.algorithms.reward_kl import RewardKL, log_ratios
from aurify.types import Datum, Group


@dataclass(frozen=True)
class ReinforcePP(RewardKL):
    baseline: bool = False  # subtract the mean of the group first

    effects: ClassVar[Effects] = {
        **dict.fromkeys(("scale", "credit", "discount"), NEVER),
        "flat_groups": Effect(
            lambda a: a.baseline and not a.reward_kl_coef,
            "with baseline: true and without reward_kl_coef; otherwise no group counts as one without spread",
        ),
    }

    @property
    def min_group(self) -> int:  # type: ignore[override]
        return 2 if self.baseline else 1

    @property
    def flattens(self) -> bool:  # type: ignore[override]
        return self.baseline

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        lengths = [[t.num_policy_tokens for t in group.trajectories] for group in groups]
        rewards = [self.compared(group.rewards) for group in groups]
        values = whiten_advantages(rewards, lengths)
        if not self.baseline:
            return values
        return [
            row if has_reward_spread(g.rewards) else [0.0] * len(row) for row, g in zip(values, groups, strict=True)
        ]

    def penalised(self, rewards: Sequence[Sequence[float]], groups: Sequence[Sequence[Datum]]) -> list[list[Datum]]:
        data = [datum for group in groups for datum in group]
        compared = [reward for row in rewards for reward in self.compared(row)]
        returns = [self.returns(reward, datum) for reward, datum in zip(compared, data, strict=True)]
        trained = [[int(weight > 0) for weight in datum.weights] for datum in data]
        pairs = zip(data, whiten_advantages(returns, trained), strict=True)
        known = iter([replace(datum, advantages=values) for datum, values in pairs])
        return [[next(known) for _ in group] for group in groups]

    def returns(self, reward: float | None, datum: Datum) -> list[float | None]:
        """[tokens] the reward less what each token and all after it cost."""
        assert reward is not None
        rest = list(accumulate(reversed(log_ratios(datum))))
        return [reward - self.reward_kl_coef * cost for cost in reversed(rest)]

    def compared(self, rewards: Sequence[float | None]) -> list[float | None]:
        if not self.baseline:
            return list(rewards)
        return [None if r is None else c for r, c in zip(rewards, center_rewards(rewards), strict=True)]
