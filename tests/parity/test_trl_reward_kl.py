"""TRL's RLOO samples, judges, takes the KL off the reward and compares; from its answers we get its advantages."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from trl_oracle import PAIRS, TOLERANCE, arguments, datasets, sharp_model, trl, with_reference

from aurify.algorithms.rloo import RLOO
from aurify.engine.engine import Engine
from aurify.types import Datum

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's, about themselves


def num_letters(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_rloo_with_the_kl_in_the_reward(tmp_path):
    model, reference = sharp_model(1), sharp_model(2)
    reference.module.save_pretrained(tmp_path / "reference")
    oracle_module = copy.deepcopy(model.module)
    oracle_module.config._name_or_path = str(tmp_path / "reference")  # where TRL takes the reference from
    trainer = trl.RLOOTrainer(
        model=oracle_module,
        reward_funcs=num_letters,
        args=trl.RLOOConfig(
            **arguments(tmp_path, per_device_train_batch_size=6, num_generations=3, max_completion_length=12, beta=0.3)
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "x"}] * 6),
        processing_class=model.tokenizer,
    )
    told = trainer._generate_and_score_completions([{"prompt": prompt} for prompt, *_ in PAIRS[:2] for _ in range(3)])
    theirs = told["advantages"].tolist()

    def rows(name: str) -> list[list[int]]:
        pairs = zip(told[f"{name}_ids"], told[f"{name}_mask"], strict=True)
        return [row[mask.bool()].tolist() for row, mask in pairs]

    data = [
        Datum([*prompt, *answer], [0.0] * len(prompt) + [1.0] * len(answer), source="policy")
        for prompt, answer in zip(rows("prompt"), rows("completion"), strict=True)
    ]
    known = zip(with_reference(data, reference), Engine(model).logprobs(data), strict=True)
    data = [replace(one, old_logprobs=values) for one, values in known]
    rewards = num_letters(model.tokenizer.batch_decode(rows("completion"), skip_special_tokens=True))
    groups = RLOO(reward_kl_coef=0.3).penalised([rewards[:3], rewards[3:]], [data[:3], data[3:]])
    assert len({round(value, 3) for value in theirs}) == 6, "equal advantages would compare nothing"
    assert [one.advantages[-1] for group in groups for one in group] == pytest.approx(theirs, abs=1e-3, rel=TOLERANCE)
