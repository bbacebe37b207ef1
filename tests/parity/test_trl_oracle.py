"""TRL 1.16 as an oracle for SFT, reward models and the online methods: on the same batch and the same weights, its
losses and gradients are ours."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from trl_oracle import (
    PAIRS,
    arguments,
    compare,
    compare_gradients,
    datasets,
    datum,
    pair_data,
    sharp_model,
    trl,
)

from aurify.algorithms.cispo import CISPO
from aurify.algorithms.gmpo import GMPO
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.gspo import GSPO
from aurify.algorithms.reward_model import RewardModel
from aurify.algorithms.rloo import RLOO
from aurify.algorithms.sapo import SAPO
from aurify.algorithms.sft import SFT
from aurify.algorithms.vespo import VESPO
from aurify.engine.engine import Engine
from aurify.models.model import LoadedModel
from aurify.types import Datum, prepared

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's, about themselves


@pytest.fixture
def model() -> LoadedModel:
    return sharp_model(1)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_sft(model, tmp_path, loss_type):
    rows = [{"prompt": prompt, "completion": chosen} for prompt, chosen, _ in PAIRS]
    trainer = trl.SFTTrainer(
        model=copy.deepcopy(model.module),
        args=trl.SFTConfig(**arguments(tmp_path, per_device_train_batch_size=3, loss_type=loss_type)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=model.tokenizer,
    )
    trainer.model.train()
    oracle = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))

    engine = Engine(model)
    data = [datum(prompt, chosen) for prompt, chosen, _ in PAIRS]
    metrics = engine.forward_backward(data, SFT(loss_type))
    compare(engine, metrics["loss"], trainer.model, oracle)


@pytest.mark.parametrize(("margins", "centering"), [((0.0, 0.0, 0.0), 0.0), ((0.5, 0.0, 2.0), 0.01)])
def test_reward_model(tmp_path, margins, centering):
    model = sharp_model(3, scalar_head=True)
    data = pair_data(margins)
    rows = [
        {"chosen_ids": chosen.tokens, "rejected_ids": rejected.tokens, "margin": chosen.margin}
        for chosen, rejected in zip(data[::2], data[1::2], strict=True)
    ]
    config = trl.RewardConfig(
        **arguments(tmp_path, per_device_train_batch_size=3), center_rewards_coefficient=centering or None
    )
    trainer = trl.RewardTrainer(
        model=copy.deepcopy(model.module),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=model.tokenizer,
    )
    trainer.model.train()
    oracle = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))

    engine = Engine(model)
    metrics = engine.forward_backward(data, RewardModel(centering=centering))
    compare(engine, metrics["loss"], trainer.model, oracle)


# What TRL calls a loss is our aggregator; it counts the constant length in max_completion_length.
GRPO_CASES = {
    "token mean, first update": ({"loss_type": "dapo"}, GRPO(), {"old"}),
    "token mean": ({"loss_type": "dapo"}, GRPO(), set()),
    "token mean of a micro-batch": ({"loss_type": "bnpo"}, GRPO(), set()),
    "sequence mean": ({"loss_type": "grpo"}, GRPO(aggregator="sequence"), set()),
    "constant length": ({"loss_type": "dr_grpo"}, GRPO(aggregator="constant", constant_length=40), set()),
    "two bounds": ({"loss_type": "grpo", "epsilon_high": 0.28}, GRPO(aggregator="sequence", clip_high=0.28), set()),
    "dual clip": ({"loss_type": "dapo", "delta": 1.5}, GRPO(dual_clip=1.5), set()),
    "KL": ({"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": False}, GRPO(kl_coef=0.3), set()),
    "GSPO": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.1},
        GSPO(clip_low=0.05, clip_high=0.1),
        set(),
    ),
    "LUSPO": (
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.1},
        GSPO(clip_low=0.05, clip_high=0.1, aggregator="constant", constant_length=1),
        set(),
    ),
    "VESPO": ({"loss_type": "vespo"}, VESPO(), set()),
    "VESPO, other humps": (
        {
            "loss_type": "vespo",
            "vespo_k_pos": 1.0,
            "vespo_lambda_pos": 0.5,
            "vespo_k_neg": 0.5,
            "vespo_lambda_neg": 1.5,
        },
        VESPO(k_positive=1.0, lambda_positive=0.5, k_negative=0.5, lambda_negative=1.5),
        set(),
    ),
    "GMPO": ({"epsilon": 0.2, "epsilon_high": 0.3}, GMPO(clip_low=0.2, clip_high=0.3), set()),
    "GMPO, KL": ({"beta": 0.3}, GMPO(kl_coef=0.3), set()),
    "top entropy": ({"loss_type": "dapo", "top_entropy_quantile": 0.5}, GRPO(top_entropy=0.5), set()),
    "CISPO": ({"loss_type": "cispo", "epsilon_high": 1.2}, CISPO(max_ratio=1.2), set()),
    "SAPO": ({"loss_type": "sapo"}, SAPO(), set()),
    "entropy bonus": ({"loss_type": "dapo", "entropy_coef": 0.05}, GRPO(entropy_coef=0.05), set()),
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("case", GRPO_CASES)
def test_grpo(model, tmp_path, case, temperature):
    options, algorithm, without = GRPO_CASES[case]
    plain, prompts, completions = rollouts()
    generator = np.random.default_rng(0)
    noise = [generator.normal(0, 0.3, len(completion)) for completion in completions]  # clips some ratios
    advantages = [0.9, -1.1, 0.4, -0.4, -1.3, 1.3]

    oracle_module = copy.deepcopy(model.module)
    engine = Engine(model)
    current = engine.logprobs(plain, temperature=temperature)
    streams = []
    for k, (prompt, values) in enumerate(zip(prompts, current, strict=True)):
        begin = len(prompt)
        streams.append([0.0] * begin + [v + n for v, n in zip(values[begin:], noise[k], strict=True)])
    data = [
        Datum(
            one.tokens,
            one.weights,
            advantages=[advantages[k]] * len(one.tokens),
            old_logprobs=None if "old" in without else streams[k],
            ref_logprobs=streams[k],
        )
        for k, one in enumerate(plain)
    ]

    gmpo = isinstance(algorithm, GMPO)
    config = (GMPOConfig if gmpo else trl.GRPOConfig)(
        **arguments(tmp_path, per_device_train_batch_size=6, num_generations=2, max_completion_length=40),
        temperature=temperature,
        **{key: value for key, value in options.items() if key != "beta"},
    )
    trainer = (GMPOTrainer if gmpo else trl.GRPOTrainer)(
        model=oracle_module,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=datasets.Dataset.from_list([{"prompt": "x"}] * 6),
        processing_class=model.tokenizer,
    )
    trainer.beta = options.get(
        "beta", 0.0
    )  # in the config it would load a reference model; the batch has its log-probs
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = {
        "prompt_ids": padded(prompts, "left"),
        "prompt_mask": padded([[1] * len(prompt) for prompt in prompts], "left"),
        "completion_ids": padded(completions, "right"),
        "completion_mask": padded([[1] * len(completion) for completion in completions], "right"),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(float(sum(map(len, completions)))),
        "ref_per_token_logps": padded_floats([s[len(p) :] for s, p in zip(streams, prompts, strict=True)]),
    }
    if "old" not in without:
        batch["old_per_token_logps"] = batch["ref_per_token_logps"]
    oracle = trainer._compute_loss(trainer.model, batch)

    data = prepared(algorithm, data, engine, temperature)
    metrics = engine.forward_backward(data, algorithm, temperature=temperature)
    compare(engine, metrics["loss"], trainer.model, oracle)


def test_rloo_with_one_update_a_rollout(model, tmp_path):
    """TRL clips the ratio of whole sequences, we do not; where the policy still is the one that sampled, that is the
    same gradient. The values of the losses differ: -A for a sequence there, for each of its tokens here."""
    plain, prompts, completions = rollouts()
    advantages = [0.9, -0.9, 0.4, -0.4, -1.3, 1.3]
    engine, oracle_module = Engine(model), copy.deepcopy(model.module)
    old = [sum(row[len(prompt) :]) for prompt, row in zip(prompts, engine.logprobs(plain), strict=True)]

    trainer = trl.RLOOTrainer(
        model=oracle_module,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.RLOOConfig(
            **arguments(tmp_path, per_device_train_batch_size=6, num_generations=2, max_completion_length=40, beta=0.0)
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "x"}] * 6),
        processing_class=model.tokenizer,
    )
    trainer.model.train()
    oracle = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": padded(prompts, "left"),
            "prompt_mask": padded([[1] * len(prompt) for prompt in prompts], "left"),
            "completion_ids": padded(completions, "right"),
            "completion_mask": padded([[1] * len(completion) for completion in completions], "right"),
            "advantages": torch.tensor(advantages),
            "old_logps": torch.tensor(old),
        },
    )

    data = [replace(one, advantages=[a] * len(one.tokens)) for one, a in zip(plain, advantages, strict=True)]
    engine.forward_backward(data, RLOO())
    compare_gradients(engine, trainer.model, oracle)


def rollouts() -> tuple[list[Datum], list[list[int]], list[list[int]]]:
    """Two answers to each prompt, as data and as the token ids of prompts and completions."""
    data = [datum(prompt, answer) for prompt, *answers in PAIRS for answer in answers]
    starts = [one.weights.index(1.0) for one in data]
    prompts = [one.tokens[:start] for one, start in zip(data, starts, strict=True)]
    return data, prompts, [one.tokens[start:] for one, start in zip(data, starts, strict=True)]


def padded(rows: list[list[int]], side: str) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)


def padded_floats(rows: list[list[float]]) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
