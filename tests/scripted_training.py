"""GRPO on what a script answers, with tools written into the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recorder import Recorder

from aurify.algorithms.grpo import GRPO
from aurify.engine.engine import Engine
from aurify.loops.online import train_online
from aurify.loops.progress import Checkpoints
from aurify.loops.rollouts import Rollouts
from aurify.pipeline.recipe import OnlineStage
from aurify.renderer import Renderer
from aurify.tasks.taskset import TaskSet


def train_scripted(engine: Engine, taskset: TaskSet, sampler: Any, stage: OnlineStage, folder: Path) -> Recorder:
    """folder: for checkpoints."""
    renderer = Renderer(engine.tokenizer, tools_as_text=True)
    rollouts = Rollouts(sampler, renderer, taskset, taskset.rubric, stage, seed=1)
    recorder = Recorder()
    checkpoints = Checkpoints(folder, every=0, keep=1, identity="x")
    train_online(engine, GRPO(), rollouts, tracker=recorder, checkpoints=checkpoints)  # type: ignore[arg-type]
    return recorder
