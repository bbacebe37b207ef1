"""The check refuses stages that cannot learn and options of a stage that would be ignored, and warns of what may not
be meant."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from aurify.errors import UserError
from aurify.pipeline.check import check_recipe
from aurify.pipeline.recipe import build_recipe

GUIDE = {"demonstrations": True}


def check(method: str, **options: Any) -> None:
    values: dict[str, Any] = {"model": "random:tiny", "task": "largest_number"}
    check_recipe(build_recipe({**values, "stages": {"rl": {"method": method, **options}}}))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("grpo", {"completions_per_prompt": 1}, "completions_per_prompt: 1; grpo compares the answers"),
        ("rloo", {"completions_per_prompt": 1}, "nothing can be learnt"),
        ("reinforce_pp", {"completions_per_prompt": 1, "algorithm": {"baseline": True}}, "at least 2"),
        ("luffy", {}, "luffy without guidance is GRPO"),
        ("exgrpo", {}, "exgrpo without replay is GRPO"),
        ("exgrpo", {"replay": {}, "algorithm": {"gamma": 0.3}}, "exgrpo.gamma: 0.3 has an effect only in a stage with"),
        ("exgrpo", {"replay": {}, "prompts_per_step": 1}, "replay.share: 0.5 of 1 prompts is less than one"),
        ("grpo", {"replay": {"share": 0.1}}, "set it to at least 0.125"),
        ("distillation", {"teacher": "random:tiny", "dynamic_sampling": 2}, "dynamic_sampling: with distillation"),
        ("reinforce_pp", {"dynamic_sampling": 2}, "dynamic_sampling: with reinforce_pp every"),
        ("distillation", {"teacher": "random:tiny", "truncated": "penalise"}, "truncated: penalise has no effect"),
        ("grpo", {"dynamic_sampling_by": "accuracy"}, "dynamic_sampling_by: accuracy has no effect without"),
        ("grpo", {"truncation_penalty": 0.5}, "truncation_penalty: 0.5 has no effect without truncated: penalise"),
        ("gdpo", {"combine_rewards": "std"}, "combine_rewards: std has no effect with gdpo"),
        ("gspo", {"algorithm": {"top_entropy": 0.2}}, "gspo.top_entropy: 0.2 has an effect only with form: token"),
        ("rloo", {"algorithm": {"covariance": "kl"}}, "raise num_minibatches or num_epochs"),
        ("dpo", {"data": {"path": "x"}, "algorithm": {"divergence_alpha": 0.3}}, "dpo.divergence_alpha: 0.3"),
    ],
)
def test_stages_that_cannot_learn_and_idle_options_are_refused(method, options, message):
    with pytest.raises(UserError, match=message):
        check(method, **options)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("reinforce_pp", {"completions_per_prompt": 1}),
        ("distillation", {"teacher": "random:tiny", "completions_per_prompt": 1}),
        ("luffy", {"guidance": GUIDE, "algorithm": {"gamma": 0.3, "behaviour": "recorded"}}),
        ("exgrpo", {"replay": {}, "guidance": GUIDE, "algorithm": {"gamma": 0.3}}),
        ("rloo", {"algorithm": {"covariance": "kl", "covariance_kl_coef": 0.2}, "num_epochs": 2}),
        ("dapo", {"dynamic_sampling": 2, "dynamic_sampling_by": "accuracy"}),
        ("gspo", {"algorithm": {"top_entropy": 0.2, "form": "token"}}),
    ],
)
def test_what_can_learn_passes(method, options):
    check(method, **options)


def test_k1_in_the_loss_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "aurify"):
        check("grpo", algorithm={"kl_coef": 0.1, "kl": "k3"})
        assert not caplog.text
        check("grpo", algorithm={"kl_coef": 0.1, "kl": "k1"})
    assert "grpo: kl: k1 in the loss has an expected gradient of zero" in caplog.text
