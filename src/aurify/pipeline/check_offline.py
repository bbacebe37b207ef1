"""What a stage that trains on data needs: rows of the kind that its method learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aurify.errors import UserError
from aurify.pipeline.recipe import OfflineStage

if TYPE_CHECKING:
    from aurify.tasks.taskset import TaskSet


def check_offline_stage(stage: OfflineStage, algorithm: Any, taskset: TaskSet | None) -> None:
    data, pairs = stage.data, algorithm.learns_from == "pairs"
    if taskset is None and (data.demonstrations or data.sample):
        raise UserError(
            "data: demonstrations and samples come from a task: set `task:` in the stage or at the top of the recipe"
        )
    if pairs and data.demonstrations:
        raise UserError(
            f"data.demonstrations: {stage.method} learns from preference pairs; use data.sample or data.path"
        )
    if not pairs and (data.sample or data.stage):
        raise UserError(
            f"data: {stage.method} learns from single answers, not from preference pairs; use demonstrations or path"
        )
    if algorithm.learns_from == "labels" and data.demonstrations:
        raise UserError(
            f"data.demonstrations: {stage.method} learns from desirable and undesirable answers, and these would all "
            "be desirable; give data.path"
        )
    if data.demonstrations and taskset is not None and taskset.demonstration(taskset.heldout[0]) is None:
        raise UserError(f"data.demonstrations: the task {taskset.name!r} cannot write its own answers; give data.path")
