"""TRL as an oracle: on the same batch and the same weights, its losses and gradients are ours."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from aurify.algorithms.cispo import CISPO
from aurify.algorithms.dpo import DPO
from aurify.algorithms.grpo import GRPO
from aurify.algorithms.gspo import GSPO
from aurify.algorithms.reward_model import RewardModel
from aurify.algorithms.rloo import RLOO
from aurify.algorithms.sapo import SAPO
from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.model import LoadedModel, load_model, tiny_model
from aurify.types import Datum

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'aurify[bench]'")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'aurify[bench]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's, about themselves
TOLERANCE = 1e-4
END = tiny_model().tokenizer.eos_token


@pytest.fixture
def model() -> LoadedModel:
    return sharpened(tiny_model(seed=1))


def sharpened(model: LoadedModel) -> LoadedModel:
    """Larger weights: with the initial ones every distribution is nearly flat, and many mistakes would not show."""
    with torch.no_grad():
        for weight in model.module.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    return model


def arguments(tmp_path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }


def compare(model: LoadedModel, engine: Engine, loss: float, oracle_module: Any, oracle_loss: torch.Tensor) -> None:
    """The losses, and the gradient of every weight."""
    assert abs(float(oracle_loss.detach())) > 1e-3, "a loss of nothing compares nothing"
    assert loss == pytest.approx(float(oracle_loss.detach()), abs=TOLERANCE, rel=TOLERANCE)
    compare_gradients(model, engine, oracle_module, oracle_loss)


def compare_gradients(model: LoadedModel, engine: Engine, oracle_module: Any, oracle_loss: torch.Tensor) -> None:
    oracle_loss.backward()
    ours = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    theirs = {name: p.grad for name, p in oracle_module.named_parameters() if p.grad is not None}
    assert set(ours) == set(theirs)
    for name, grad in theirs.items():
        error = (ours[name] - grad).norm() / grad.norm()
        assert error < TOLERANCE, f"{name}: relative error {float(error):.1e}"
    assert engine.optim_step(1e-3)["optim/grad_norm"] > 0


PAIRS = [
    ("What is 3 + 4?", "7", "It could be 34."),
    ("Name a colour of the sky, please.", "It is blue, mostly.", "No"),
    ("Say hi", "hi there, how are you?", "hi"),
]


def ids(model: LoadedModel, text: str) -> list[int]:
    return model.tokenizer.encode(text)


def datum(prompt: list[int], answer: list[int], **options: Any) -> Datum:
    return Datum(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer), **options)


def pair_data(model: LoadedModel, margins: tuple[float, ...] = (0.0, 0.0, 0.0)) -> list[Datum]:
    return [
        datum(ids(model, prompt), ids(model, answer + END), unit=unit, margin=margins[unit])
        for unit, (prompt, chosen, rejected) in enumerate(PAIRS)
        for answer in (chosen, rejected)
    ]


def test_sft(model, tmp_path):
    rows = [{"prompt": prompt, "completion": chosen} for prompt, chosen, _ in PAIRS]
    trainer = trl.SFTTrainer(
        model=copy.deepcopy(model.module),
        args=trl.SFTConfig(**arguments(tmp_path, per_device_train_batch_size=3)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=model.tokenizer,
    )
    trainer.model.train()
    oracle = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))

    engine = Engine(model)
    data = [datum(ids(model, prompt), ids(model, chosen + END)) for prompt, chosen, _ in PAIRS]
    metrics = engine.forward_backward(data, SFT())
    compare(model, engine, metrics["loss"], trainer.model, oracle)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo(model, tmp_path, beta):
    reference = sharpened(tiny_model(seed=2))
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]
    trainer = trl.DPOTrainer(
        model=copy.deepcopy(model.module),
        ref_model=reference.module,
        args=trl.DPOConfig(**arguments(tmp_path, per_device_train_batch_size=3, beta=beta)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=model.tokenizer,
    )
    trainer.model.train()
    oracle = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))

    data = pair_data(model)
    known = Engine(LoadedModel(copy.deepcopy(reference.module), model.tokenizer, "ref"), trainable=False).logprobs(data)
    engine = Engine(model)
    data = [Datum(d.tokens, d.weights, ref_logprobs=values, unit=d.unit) for d, values in zip(data, known, strict=True)]
    metrics = engine.forward_backward(data, DPO(beta=beta))
    compare(model, engine, metrics["loss"], trainer.model, oracle)


@pytest.mark.parametrize(("margins", "centering"), [((0.0, 0.0, 0.0), 0.0), ((0.5, 0.0, 2.0), 0.01)])
def test_reward_model(tmp_path, margins, centering):
    model = sharpened(load_model("random:tiny", scalar_head=True, seed=3))
    data = pair_data(model, margins)
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
    compare(model, engine, metrics["loss"], trainer.model, oracle)


# What TRL calls a loss is our aggregator; it counts the constant length in max_completion_length.
GRPO_CASES = {
    "token mean, first update": ({"loss_type": "dapo"}, GRPO(), {"old"}),
    "token mean": ({"loss_type": "dapo"}, GRPO(), set()),
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
    "CISPO": ({"loss_type": "cispo", "epsilon_high": 1.2}, CISPO(max_ratio=1.2), set()),
    "SAPO": ({"loss_type": "sapo"}, SAPO(), set()),
    "entropy bonus": ({"loss_type": "dapo", "entropy_coef": 0.05}, GRPO(entropy_coef=0.05), set()),
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("case", GRPO_CASES)
def test_grpo(model, tmp_path, case, temperature):
    options, algorithm, without = GRPO_CASES[case]
    prompts = [ids(model, prompt) for prompt, *_ in PAIRS for _ in range(2)]
    completions = [ids(model, answer + END) for pair in PAIRS for answer in pair[1:]]
    generator = np.random.default_rng(0)
    noise = [generator.normal(0, 0.3, len(completion)) for completion in completions]  # clips some ratios
    advantages = [0.9, -1.1, 0.4, -0.4, -1.3, 1.3]

    oracle_module = copy.deepcopy(model.module)
    engine = Engine(model)
    plain = [datum(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
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

    config = trl.GRPOConfig(
        **arguments(tmp_path, per_device_train_batch_size=6, num_generations=2, max_completion_length=40),
        temperature=temperature,
        **{key: value for key, value in options.items() if key != "beta"},
    )
    trainer = trl.GRPOTrainer(
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

    metrics = engine.forward_backward(data, algorithm, temperature=temperature)
    compare(model, engine, metrics["loss"], trainer.model, oracle)


def test_rloo_with_one_update_a_rollout(model, tmp_path):
    """TRL clips the ratio of whole sequences, we do not; where the policy still is the one that sampled, that is the
    same gradient. The values of the losses differ: -A for a sequence there, for each of its tokens here."""
    prompts = [ids(model, prompt) for prompt, _, _ in PAIRS for _ in range(2)]
    completions = [ids(model, answer + END) for _, *answers in PAIRS for answer in answers]
    advantages = [0.9, -0.9, 0.4, -0.4, -1.3, 1.3]
    engine, oracle_module = Engine(model), copy.deepcopy(model.module)
    plain = [datum(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
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
    compare_gradients(model, engine, trainer.model, oracle)


def padded(rows: list[list[int]], side: str) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)


def padded_floats(rows: list[list[float]]) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
