"""Several rewards of a group made into one, where a weighted sum would let the widest of them drown the others.

X holds a group's answers by its rewards, each times its weight:

    sum      the sum of a row                     uniform  the mean of a row
    std      each column weighted by its share of all standard deviations: what separates the answers counts most
    pca      the projection of standardised columns on their first principal component: what the rewards agree on
    l2       the length of a row, for rewards that are never negative

The sign of a principal component is arbitrary; ours points to where rewards rise, and where it holds one reward against
another ("pca" would then pay for getting worse at it) the group falls back to "uniform". Deviations have divisor n.

The columns are all rewards that any answer of the group has, an environment's too; those of weight 0 are left out. The
penalty of `truncated: penalise` is no column: it is taken off what was combined (see `penalise_truncated_answer`),
so that it costs the same however rewards are combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from aurify.errors import UserError
from aurify.types import Trajectory

Combination = Literal["sum", "uniform", "std", "pca", "l2"]
EPSILON = 1e-8
TRUNCATED = "truncated"  # the name of the penalty among the rewards


def combine_rewards(trajectories: Sequence[Trajectory], weights: Mapping[str, float], how: Combination) -> None:
    """Replaces `reward` of a group's trajectories; those to which no reward applies keep None. A reward that does not
    apply to one answer counts for it as the mean of the others: it says nothing."""
    scored = [t for t in trajectories if t.reward is not None]
    names = sorted({name for t in scored for name, value in t.rewards.items() if value is not None})
    names = [name for name in names if weights.get(name, 1.0)]
    if how == "sum" or not names:
        return
    table = np.array([[t.rewards.get(name) for name in names] for t in scored], dtype=float)  # None becomes NaN
    table = np.where(np.isnan(table), np.nanmean(table, axis=0), table) * [weights.get(name, 1.0) for name in names]
    if how == "l2" and (table < 0).any():
        name = names[int(np.argwhere((table < 0).any(0))[0, 0])]
        raise UserError(f"combine_rewards: l2 squares, but reward {name!r} is negative; choose std, pca or uniform")
    for trajectory, value in zip(scored, combine_reward_table(table, how), strict=True):
        trajectory.reward = float(value)


def penalise_truncated_answer(trajectory: Trajectory, penalty: float) -> None:
    """A completion cut by a token limit costs `penalty`, whatever else it earned and however rewards were combined. The
    cost stands among the rewards under its own name, with 0 for the others: a method that takes the rewards one by one
    compares them."""
    if trajectory.reward is not None:
        cost = penalty if trajectory.truncated else 0.0
        trajectory.rewards[TRUNCATED] = 0.0 - cost
        trajectory.reward -= cost


def combine_reward_table(table: np.ndarray, how: Combination) -> np.ndarray:
    """[answers, rewards] -> [answers]"""
    if how == "sum":
        return table.sum(1)
    if how == "l2":
        return np.sqrt((table**2).sum(1))
    deviations = table.std(0)
    if how == "uniform" or not deviations.any():
        return table.mean(1)
    if how == "std":
        return table @ (deviations / deviations.sum())
    standardised = (table - table.mean(0)) / (deviations + EPSILON)
    loadings = np.linalg.svd(standardised, full_matrices=False)[2][0]
    loadings = loadings if loadings.sum() >= 0 else -loadings
    if (loadings < -EPSILON).any():
        return table.mean(1)
    return standardised @ loadings
