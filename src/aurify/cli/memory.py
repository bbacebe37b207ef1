"""`aurify plan`: what each stage of a recipe will hold in memory, before anything is loaded, and what to change where
it does not fit."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurify.cli.names import RECIPE, resolve_recipe_argument

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from aurify.pipeline.memory import StageMemory
    from aurify.pipeline.plan import Plan


def plan_recipe(
    recipe: Annotated[str, RECIPE],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="dotted.key=value, such as stages.grpo.sampling.max_tokens=512.")
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="GiB or the name of a card, such as 8GB or rtx4090; without it: this machine.")
    ] = None,
) -> None:
    """Show what a recipe will hold in memory, before anything is loaded."""
    from rich.console import Console

    from aurify import config

    path = resolve_recipe_argument(recipe)
    values = config.load_config(path, overrides or ())
    with Console(stderr=True).status("checking the recipe ...") as status, config.prefix_errors(path):
        from aurify.pipeline.check import check_recipe
        from aurify.pipeline.recipe import build_recipe

        plan = check_recipe(build_recipe(values), keep=False, fit=False, tell=lambda line: status.update(f"{line} ..."))
    if not show_memory(plan, Console(highlight=False), card, parts=True):
        raise typer.Exit(1)


def show_memory(plan: Plan, console: Console, wish: str | None = None, *, parts: bool) -> bool:
    """Whether all stages fit. parts: each with its lines; else a line a stage."""
    from aurify.pipeline.card import choose_memory_card
    from aurify.pipeline.fit import apply_memory_changes, suggest_memory_changes
    from aurify.pipeline.memory import format_memory, plan_stage_memory

    fits = True
    for name, stage in plan.stages.items():
        if stage.bulk is None:  # finished before
            continue
        chosen = choose_memory_card(stage.options.model, wish)
        memory = plan_stage_memory(plan, stage, chosen)
        verdict = (
            f"peak {format_memory(memory.peak)} ({memory.fullest}) of {format_memory(chosen.size)} on {chosen.name}"
        )
        if parts:
            console.print(list_memory_parts(name, memory))
        console.print(f"{name}: {verdict}", soft_wrap=True, markup=False)
        if memory.fits:
            continue
        fits = False
        changes, changed = suggest_memory_changes(plan, stage, chosen)
        written = " ".join(map(shlex.quote, apply_memory_changes(plan.recipe, name, changes)[1]))
        better = (
            f"{'fits' if changed.fits else 'does not fit even'} with {written} (peak {format_memory(changed.peak)})"
        )
        told = f"it does not fit; it {better}" if changes else "it does not fit, and no option would help"
        console.print(f"{name}: {told}", style="yellow", soft_wrap=True, markup=False)
    return fits


def list_memory_parts(name: str, memory: StageMemory) -> Table:
    from rich import box
    from rich.table import Table

    from aurify.pipeline.memory import ALWAYS, format_memory

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns: list[tuple[str, Any]] = [(name, "left"), ("bytes", "right"), ("formula", "left"), ("while", "left")]
    for heading, justify in columns:
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading == "bytes")
    for part in memory.parts:
        when = "always" if part.phases == ALWAYS else ", ".join(part.phases)
        table.add_row(part.name, format_memory(part.size), part.formula, when)
    return table
