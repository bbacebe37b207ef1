"""What may change when a run goes on. A stage that has begun can train longer or with another optimiser: its data keep
their order, and the schedule goes on with the new length. Anything else would mix two runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aurify.config import load_config
from aurify.engine import checkpoint
from aurify.errors import UserError
from aurify.pipeline.run import is_stage_finished
from aurify.tracking.run_folder import RunFolder

FREE = ("name", "evaluation", "rollouts")  # at the top of a recipe, at any time
FREE_IN_STAGE = ("steps", "epochs", "optim", "checkpoint_every", "keep_checkpoints", "samples_every", "rollouts")

Change = tuple[Any, Any]  # old value, new value; None where there is none


def check_recipe_changes(folder: RunFolder, values: Mapping[str, Any]) -> dict[str, Change]:
    """How the values of a recipe differ from those that the run has. Raises where a stage that has begun, or is
    finished, is to have been something else."""
    before, now = (dict(flatten_recipe(one)) for one in (load_config(folder.recipe), values))
    keys = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
    changes = {key: (before.get(key), now.get(key)) for key in keys}
    begun = list(folder.results())
    for key, change in changes.items():
        top, _, rest = key.partition(".")
        stage, _, option = rest.partition(".")
        if top != "stages":
            if begun and top not in FREE:
                raise refuse_recipe_change(folder, key, change)
        elif stage in begun and is_stage_finished(folder, stage):
            raise UserError(
                f"{key}: {describe_recipe_change(change)} would change nothing, for stage {stage!r} of {folder.path} "
                f"is finished. Train on from its model in a new run: model={folder.stage_folder(stage).final}"
            )
        elif stage in begun and option.partition(".")[0] not in FREE_IN_STAGE:
            raise refuse_recipe_change(folder, key, change)
        elif option == "steps" and (done := count_stage_steps(folder, stage)) > (change[1] or done):
            raise UserError(f"{key}: {done} steps are done already, and the stage is to have {change[1]}; give more")
    return changes


def count_stage_steps(folder: RunFolder, stage: str) -> int:
    """Those of the newest checkpoint."""
    newest = checkpoint.latest_checkpoint(folder.stage_folder(stage).checkpoints)
    return 0 if newest is None else int(newest.name.removeprefix(checkpoint.PREFIX))


def refuse_recipe_change(folder: RunFolder, key: str, change: Change) -> UserError:
    return UserError(
        f"{key}: {describe_recipe_change(change)} is another recipe than {folder.path} began with. A stage that has "
        "begun can go on with other steps, epochs or optim, and nothing else; undo the change, or start a new run "
        "without --resume"
    )


def describe_recipe_change(change: Change) -> str:
    """`4 -> 6`"""
    old, new = ("null" if value is None else str(value) for value in change)
    return f"{old} -> {new}"


def record_run_leg(folder: RunFolder, values: Mapping[str, Any], changes: Mapping[str, Change]) -> None:
    """Writes down with what the run goes on: in recipe.yaml, run_info.json and the events of each stage."""
    told = {key: describe_recipe_change(change) for key, change in changes.items()}
    steps = {stage: done for stage in folder.results() if (done := count_stage_steps(folder, stage))}
    folder.record_leg(values, told, steps)
    for key, words in told.items():
        stage = key.split(".")[1] if key.startswith("stages.") else None
        if stage is not None and folder.stage_folder(stage).path.is_dir():
            folder.stage_folder(stage).log(f"goes on with {key}: {words}")


def flatten_recipe(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values; lists stay whole."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten_recipe(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
