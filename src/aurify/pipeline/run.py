"""The chain of stages. Each one leaves a folder with its model, and later stages name it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from aurify.environments.sharing import close_shared
from aurify.loops.interrupt import terminable
from aurify.pipeline.check import check_recipe
from aurify.pipeline.plan import Plan, PlannedStage, describe_stage
from aurify.pipeline.recipe import Recipe
from aurify.pipeline.stage import run_stage
from aurify.pipeline.start import start_stage
from aurify.rows.sources import forget_rows
from aurify.tracking.run_folder import RunFolder
from aurify.tracking.trackers.console import Console


def run_pipeline(
    recipe: Recipe | Plan, folder: RunFolder, *, console: Console | None = None, show_samples: bool = False
) -> dict[str, dict[str, Any]]:
    """Runs all stages that are not finished yet, and returns what each came to. A recipe is checked first. A plan runs
    once, for each stage lets go of its examples. Raises KeyboardInterrupt with a text that says how to go on, after a
    checkpoint."""
    console = console or Console()
    plan = check_recipe(recipe) if isinstance(recipe, Recipe) else recipe
    forget_rows()  # all that was to be read is in the plan
    try:
        with folder.lock(), terminable():
            for number, stage in enumerate(plan.stages.values(), 1):
                title = f"{number}/{len(plan.stages)} {stage.name}"
                if is_finished(folder, stage.name):
                    console.print(f"[dim]{title}: finished already[/]")
                else:
                    legs = "".join(f"\n{line}" for line in folder.describe_legs(stage.name))
                    console.header(title, summarise_stage(stage) + legs)
                    with folder.attempt(stage.name):
                        run_stage(start_stage(plan, stage.name, folder, console, show_samples=show_samples))
                stage.examples = stage.kept = stage.traces = None
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"{str(error) or 'interrupted'}; go on with: {name_program()} train --resume {folder.path}"
        ) from None
    finally:
        close_shared()
    results = folder.results()
    console.summary(results)
    if (hint := chat_hint(plan, folder)) is not None:
        console.print(hint)
    return results


def summarise_stage(stage: PlannedStage) -> str:
    row = describe_stage(stage)
    return f"{row['method']} of {row['model']} ({row['weights']}), {row['learns from']}, {row['length']}"


def is_finished(folder: RunFolder, stage: str) -> bool:
    return folder.results().get(stage, {}).get("status") == "finished" and folder.stage(stage).final.is_dir()


def chat_hint(plan: Plan, folder: RunFolder) -> str | None:
    """How to talk to the last model that can write."""
    for name, stage in reversed(plan.stages.items()):
        if not stage.scores:
            return f"Chat with it: {name_program()} chat {folder.path}:{name}"
    return None


def name_program() -> str:
    """How a shell finds the `aurify` that is running: by its path, where its environment is not activated."""
    called = Path(sys.argv[0])
    if called.name != "aurify" or not called.is_file():  # `python -m`, or a program of one's own
        return "aurify"
    found = shutil.which("aurify")
    if found is not None and Path(found).absolute() == called.absolute():
        return "aurify"
    path = os.path.relpath(called)
    return str(called) if path.startswith(os.pardir) else path
