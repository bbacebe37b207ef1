"""Reads off a skeleton, and off a stage's rows and prompts, what its memory plan is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from aurify.engine.adapter import choose_adapted_layers
from aurify.engine.footprint import read_shape
from aurify.engine.lora import LoraConfig
from aurify.environments.single_turn import SingleTurn
from aurify.models.model import LoadedModel
from aurify.pipeline.plan import Sizes
from aurify.renderer import Renderer
from aurify.tasks.taskset import TaskSet
from aurify.types import Task

MOST_PROMPTS = 64


def read_row_sizes(model: LoadedModel, lora: LoraConfig | None = None, layers: Iterable[str] = ()) -> Sizes:
    """layers: those of the adapter; else those that `lora` would be on."""
    module = model.module
    known = dict(module.named_modules())
    chosen: list[Any] = [known[name] for name in layers if name in known] or [
        *choose_adapted_layers(module, lora or LoraConfig()).values()
    ]
    score = getattr(module, "score", None)
    return Sizes(
        read_shape(module),
        edges=sum(sum(layer.weight.shape) for layer in chosen),
        num_adapted=len(chosen),
        adapted=sum(layer.weight.numel() for layer in chosen),
        score=0 if score is None else sum(parameter.numel() for parameter in score.parameters()),
    )


def find_longest_prompts(tasks: Sequence[Task], taskset: TaskSet, renderer: Renderer) -> list[list[int]]:
    """In tokens; chosen by characters. An environment may write prompts of its own in place of an empty one."""
    written = [task for task in tasks if task.prompt]
    long = sorted(written, key=lambda task: -sum(len(message["content"]) for message in task.prompt))[:MOST_PROMPTS]
    return sorted((renderer.prompt(task.prompt, taskset.tools) for task in long), key=len, reverse=True)


def stage_converses(taskset: TaskSet | None) -> bool:
    """Whether an environment answers, so that the length of a conversation is not known."""
    return taskset is not None and taskset.environment is not SingleTurn
