"""What `aurify train --dry-run` shows: a row a stage, and what the model will read, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from aurify.data.heldout import HeldOut
    from aurify.data.tally import Tally
    from aurify.loops.recipe import OfflineStage, OnlineStage, Recipe
    from aurify.renderer import Renderer
    from aurify.types import Datum


def show_plan(recipe: Recipe, heldout: HeldOut) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from aurify.data.tally import Tally
    from aurify.loops.plan import describe

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "what is trained", "on what"):  # three, so that they fit a narrow terminal
        table.add_column(column, overflow="fold")
    for row in describe(recipe):
        trained = f"{row['method']} of {row['model']} ({row['weights']})"
        table.add_row(row["stage"], trained, f"{row['learns from']}, {row['length']}")
    console.print(table)
    for name, stage in recipe.stages.items():
        tally = Tally()
        example = first_example(recipe, name, heldout, tally)
        for line in tally.lines():
            console.print(f"{name}: {line}", markup=False)
        if example is not None:
            console.rule(f"the first example of {name} ({len(example.tokens)} tokens)", align="left", style="dim")
            console.print(highlighted(renderer_of(recipe, stage), example))
    console.print("[dim]Green is trained, the rest is context.[/] The recipe is fine; leave out --dry-run to train.")


def first_example(recipe: Recipe, name: str, heldout: HeldOut, tally: Tally) -> Datum | None:
    """None where the example does not exist yet: pairs are sampled by the model of an earlier stage. tally: of what is
    changed and left out."""
    from aurify.data.formats import sft_data
    from aurify.loops.examples import first_datum, rows_of_demonstrations
    from aurify.loops.heldout import stage_rows
    from aurify.loops.plan import taskset_of
    from aurify.loops.recipe import OnlineStage, algorithm_of
    from aurify.types import Datum

    stage = recipe.stages[name]
    renderer, taskset = renderer_of(recipe, stage), taskset_of(stage)
    if isinstance(stage, OnlineStage):
        assert taskset is not None
        tokens = renderer.prompt(next(iter(taskset.train(recipe.seed))).prompt)
        return Datum(tokens, [0.0] * len(tokens))
    if stage.data.parts:
        rows = stage_rows(recipe, name, heldout)
        tally.add(rows.tally)
        return first_datum(rows, stage, renderer, algorithm_of(stage, stage.method).learns_from)
    if stage.data.demonstrations is not None:
        assert taskset is not None
        return sft_data(rows_of_demonstrations(taskset, 1, recipe.seed).train, renderer, stage.train_on)[0]
    return None


def renderer_of(recipe: Recipe, stage: OfflineStage | OnlineStage) -> Renderer:
    """Of the model that the chain of stages begins with: training does not change the tokenizer."""
    from aurify.engine.model import load_tokenizer
    from aurify.loops.recipe import reference
    from aurify.renderer import Renderer

    while (earlier := reference(stage.model.name)) is not None:
        stage = recipe.stages[earlier]
    return Renderer(load_tokenizer(stage.model.name))


def highlighted(renderer: Renderer, example: Datum) -> Text:
    """The text with special tokens, trained parts in green."""
    from rich.text import Text

    text = Text()
    for tokens, trained in runs_of(example):
        text.append(renderer.tokenizer.decode(tokens), style="green" if trained else "dim")
    return text


def runs_of(example: Datum) -> list[tuple[list[int], bool]]:
    """Neighbouring tokens that are all trained, or all not, together: a character may span several tokens."""
    runs: list[tuple[list[int], bool]] = []
    for token, weight in zip(example.tokens, example.weights, strict=True):
        if not runs or runs[-1][1] != (weight != 0):
            runs.append(([], weight != 0))
        runs[-1][0].append(token)
    return runs
