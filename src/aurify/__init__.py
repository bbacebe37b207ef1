"""Aurify: LLM post-training that fits on a desk.

The names below are the public interface. They are imported on first use, so `import aurify` costs nothing and loads no
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aurify.errors import UserError
from aurify.registry import make_decorator

if TYPE_CHECKING:
    from aurify.algorithms.dpo import DPO
    from aurify.algorithms.grpo import GRPO
    from aurify.algorithms.reward_model import RewardModel
    from aurify.algorithms.sft import SFT
    from aurify.config import load_config
    from aurify.engine.engine import Engine
    from aurify.engine.lora import LoraConfig
    from aurify.engine.optim import OptimConfig, lr_at
    from aurify.environments.env import Environment, Observation, Step
    from aurify.environments.rollout import build_data, build_datum, rollout
    from aurify.evaluation.evaluate import evaluate
    from aurify.models.model import LoadedModel, ModelConfig, load_model, load_tokenizer, tiny_model
    from aurify.pipeline.run import run_pipeline
    from aurify.renderer import Renderer
    from aurify.rewards.rubric import Rubric
    from aurify.samplers.inprocess import InProcessSampler
    from aurify.samplers.sampler import Sampler
    from aurify.samplers.scripted import ScriptedSampler
    from aurify.tasks import make as make_task
    from aurify.tasks.taskset import TaskSet
    from aurify.types import (
        Batch,
        Completion,
        Datum,
        Group,
        Message,
        Outputs,
        SamplingParams,
        Segment,
        Task,
        Trajectory,
    )

__all__ = [
    "DPO",
    "GRPO",
    "SFT",
    "Batch",
    "Completion",
    "Datum",
    "Engine",
    "Environment",
    "Group",
    "InProcessSampler",
    "LoadedModel",
    "LoraConfig",
    "Message",
    "ModelConfig",
    "Observation",
    "OptimConfig",
    "Outputs",
    "Renderer",
    "RewardModel",
    "Rubric",
    "Sampler",
    "SamplingParams",
    "ScriptedSampler",
    "Segment",
    "Step",
    "Task",
    "TaskSet",
    "Trajectory",
    "UserError",
    "__version__",
    "algorithm",
    "build_data",
    "build_datum",
    "dataset",
    "environment",
    "evaluate",
    "load_config",
    "load_model",
    "load_tokenizer",
    "lr_at",
    "make_task",
    "reward",
    "rollout",
    "run_pipeline",
    "task",
    "tiny_model",
    "tool",
]

__version__ = "0.1.0"

task = make_decorator("task")
reward = make_decorator("reward")
environment = make_decorator("environment")
tool = make_decorator("tool")
algorithm = make_decorator("algorithm")
dataset = make_decorator("dataset")

HOMES = {
    "aurify.algorithms.dpo": ("DPO",),
    "aurify.algorithms.grpo": ("GRPO",),
    "aurify.algorithms.reward_model": ("RewardModel",),
    "aurify.algorithms.sft": ("SFT",),
    "aurify.config": ("load_config",),
    "aurify.engine.engine": ("Engine",),
    "aurify.engine.lora": ("LoraConfig",),
    "aurify.models.model": ("LoadedModel", "ModelConfig", "load_model", "load_tokenizer", "tiny_model"),
    "aurify.engine.optim": ("OptimConfig", "lr_at"),
    "aurify.environments.env": ("Environment", "Observation", "Step"),
    "aurify.environments.rollout": ("build_data", "build_datum", "rollout"),
    "aurify.evaluation.evaluate": ("evaluate",),
    "aurify.pipeline.run": ("run_pipeline",),
    "aurify.renderer": ("Renderer",),
    "aurify.rewards.rubric": ("Rubric",),
    "aurify.samplers.inprocess": ("InProcessSampler",),
    "aurify.samplers.sampler": ("Sampler",),
    "aurify.samplers.scripted": ("ScriptedSampler",),
    "aurify.tasks": ("make_task",),
    "aurify.tasks.taskset": ("TaskSet",),
    "aurify.types": (
        "Batch",
        "Completion",
        "Datum",
        "Group",
        "Message",
        "Outputs",
        "SamplingParams",
        "Segment",
        "Task",
        "Trajectory",
    ),
}
LAZY = {name: home for home, names in HOMES.items() for name in names}
RENAMED = {"make_task": "make"}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'aurify' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(LAZY[name]), RENAMED.get(name, name))
    return value


def __dir__() -> list[str]:
    return __all__
