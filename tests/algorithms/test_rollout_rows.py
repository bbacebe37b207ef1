"""A rollout split into rows has the gradient of one that is not, whatever is summed over a rollout (rllm 512)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_properties import ADVANTAGE, CASES, bare, gradient, make_engine, relative

from aurify import registry
from aurify.environments.rollout import build_data, build_datum
from aurify.loops.units import join_rollout_units, split_rollout_advantages
from aurify.types import Datum, Segment, Trajectory, prepared

STREAMS = ("old_logprobs", "ref_logprobs", "logprobs")


def make_rollouts(num: int = 4) -> list[tuple[Trajectory, Trajectory]]:
    """Conversations of three turns, each as one row and as two, where the second begins with all that was before."""
    generator = np.random.default_rng(0)

    def draw(most: int) -> list[int]:
        return generator.integers(3, 300, int(generator.integers(2, most))).tolist()

    made = []
    for _ in range(num):
        parts = [draw(20) for _ in range(6)]
        origins = ("prompt", "policy", "environment", "policy", "environment", "policy")
        logprobs = [[-5.0] * len(part) if o == "policy" else None for part, o in zip(parts, origins, strict=True)]
        whole = [Segment(*entry) for entry in zip(parts, origins, logprobs, strict=True)]
        again = Segment([token for part in parts[:5] for token in part], "prompt")
        made.append((Trajectory(whole, [], 0), Trajectory([*whole[:4], again, whole[5]], [], 0)))
    return made


def make_pair(advantages: list[float]) -> tuple[list[Datum], list[Datum]]:
    """The same data, with the same log-probs of each token, in one row a rollout and in several."""
    generator = np.random.default_rng(1)
    whole, split = [], []
    for k, ((one, two), advantage) in enumerate(zip(make_rollouts(), advantages, strict=True)):
        datum = build_datum(one, advantage)
        rows = build_data(two, advantage, unit=k)
        noise = {name: (-5.7 + 0.2 * generator.normal(size=len(datum.tokens))).tolist() for name in STREAMS}
        whole.append(replace(datum, **noise))
        split += [replace(row, **{name: values[: len(row.tokens)] for name, values in noise.items()}) for row in rows]
    return whole, split


def test_a_policy_token_is_trained_once_in_the_row_where_it_was_sampled():
    [(whole, split), *_] = make_rollouts()
    first, second = build_data(split, 0.5, unit=0)
    assert second.tokens == whole.tokens and second.tokens[: len(first.tokens)] == first.tokens
    assert sum(first.weights) + sum(second.weights) == whole.num_policy_tokens == split.num_policy_tokens
    joined = [max(pair) for pair in zip([*first.weights, *[0.0] * len(second.tokens)], second.weights, strict=False)]
    assert joined == build_datum(whole).weights
    assert first.unit == second.unit == 0 and build_datum(whole).unit == -1
    with pytest.raises(ValueError, match="has 2 rows: give a unit"):
        build_data(split)
    with pytest.raises(ValueError, match="too many values"):
        build_datum(split)


@pytest.mark.parametrize("name", ADVANTAGE)
def test_rows_have_the_gradient_of_the_whole(name):
    """Token means and sequence means, ratios and corrections of whole sequences; fp32, relative 1e-5."""
    algorithm = CASES[name]
    whole, split = make_pair([1.0, -0.5, 0.25, -2.0])
    engine = make_engine(algorithm)
    engine.keep_reference()
    expected = gradient(engine, prepared(algorithm, whole, engine), algorithm)
    data = prepared(algorithm, split, engine)
    assert relative(gradient(engine, data, algorithm), expected) < 1e-5
    engine.micro_batch_tokens = 40
    assert relative(gradient(engine, data, algorithm), expected) < 1e-5, "units stay together in any micro-batch"


@pytest.mark.parametrize("name", ["gspo", "grpo(aggregator=sequence,scale=none,kl_coef=0.1)", "gmpo"])
def test_a_row_a_step_would_weigh_long_rollouts_more(name):
    """What the test above guards against: rows that count as sequences of their own."""
    algorithm = bare(CASES[name])
    whole, split = make_pair([1.0, -0.5, 0.25, -2.0])
    engine = make_engine(algorithm)
    alone = [replace(datum, unit=-1) for datum in split]
    assert relative(gradient(engine, alone, algorithm), gradient(engine, whole, algorithm)) > 0.1


@pytest.mark.parametrize(
    ("name", "options"), [("rloo", {}), ("reinforce_pp", {}), ("reinforce_pp", {"baseline": True})]
)
def test_what_a_rollout_costs_is_summed_over_its_rows(name: str, options: dict[str, Any]):
    algorithm = registry.get_entry("algorithm", name)(reward_kl_coef=0.1, **options)
    rewards = [[1.0, 0.0], [0.5, 1.0]]
    results = []
    for data in make_pair([0.0] * 4):
        groups = [
            join_rollout_units([d for d in data if d in part])
            for part in (data[: len(data) // 2], data[len(data) // 2 :])
        ]
        revised, _ = algorithm.revise_advantages(rewards, groups)
        results.append(split_rollout_advantages(data, [datum for group in revised for datum in group]))
    trained = [
        torch.tensor([a for d in data for a, w in zip(d.advantages, d.weights, strict=True) if w]) for data in results
    ]
    assert torch.allclose(*trained, atol=1e-6) and trained[0].abs().max() > 0.1
