"""The chain of stages. Each one leaves a folder with its model, and later stages name it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from aurify.data.heldout import HeldOut
from aurify.loops.interrupt import terminable
from aurify.pipeline.check import describe, validate
from aurify.pipeline.heldout import checked_heldout
from aurify.pipeline.recipe import Recipe, build_algorithm
from aurify.pipeline.stage import StageRun, is_finished
from aurify.tracking.run_folder import RunFolder
from aurify.tracking.trackers.console import Console


def run_pipeline(
    recipe: Recipe,
    folder: RunFolder,
    *,
    console: Console | None = None,
    show_samples: bool = False,
    heldout: HeldOut | None = None,
) -> dict[str, dict[str, Any]]:
    """Runs all stages that are not finished yet, and returns what each came to. Raises KeyboardInterrupt with a text
    that says how to go on, after a checkpoint."""
    console = console or Console()
    validate(recipe)
    heldout = checked_heldout(recipe) if heldout is None else heldout
    try:
        with folder.lock(), terminable():
            for number, name in enumerate(recipe.stages, 1):
                run_stage(recipe, folder, name, f"{number}/{len(recipe.stages)} {name}", console, show_samples, heldout)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"{str(error) or 'interrupted'}; go on with: {program()} train --resume {folder.path}"
        ) from None
    results = folder.results()
    console.summary(results)
    if (hint := chat_hint(recipe, folder)) is not None:
        console.print(hint)
    return results


def run_stage(
    recipe: Recipe, folder: RunFolder, name: str, title: str, console: Console, show_samples: bool, heldout: HeldOut
) -> None:
    if is_finished(folder, name):
        console.print(f"[dim]{title}: finished already[/]")
        return
    [plan] = [row for row in describe(recipe) if row["stage"] == name]
    console.header(
        title, f"{plan['method']} of {plan['model']} ({plan['weights']}), {plan['learns from']}, {plan['length']}"
    )
    with folder.attempt(name):
        StageRun(recipe, folder, name, console, show_samples, heldout).run()


def chat_hint(recipe: Recipe, folder: RunFolder) -> str | None:
    """How to talk to the last model that can write."""
    for name, stage in reversed(recipe.stages.items()):
        if "scores" not in build_algorithm(stage, f"stages.{name}").needs:
            return f"Chat with it: {program()} chat {folder.path}:{name}"
    return None


def program() -> str:
    """How a shell finds the `aurify` that is running: by its path, where its environment is not activated."""
    called = Path(sys.argv[0])
    if called.name != "aurify" or not called.is_file():  # `python -m`, or a program of one's own
        return "aurify"
    found = shutil.which("aurify")
    if found is not None and Path(found).absolute() == called.absolute():
        return "aurify"
    path = os.path.relpath(called)
    return str(called) if path.startswith(os.pardir) else path
