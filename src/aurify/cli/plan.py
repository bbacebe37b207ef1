"""What `aurify train --dry-run` shows: a row a stage, and what the model will read, token by token."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aurify.config import prefix_errors

if TYPE_CHECKING:
    from rich.text import Text

    from aurify.data.heldout import HeldOut
    from aurify.data.tally import Tally
    from aurify.pipeline.recipe import OfflineStage, OnlineStage, Recipe
    from aurify.renderer import Renderer
    from aurify.tasks.taskset import TaskSet
    from aurify.types import Datum

TRIED_TURNS = 3  # of an environment, in a dry run
STAND_IN = "I do not know."


def show_plan(recipe: Recipe, heldout: HeldOut) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from aurify.data.tally import Tally
    from aurify.pipeline.check import describe

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
        with prefix_errors(f"stages.{name}"):
            renderer = renderer_of(recipe, stage)
            example = first_example(recipe, name, renderer, heldout, tally)
            for line in tally.lines():
                console.print(f"{name}: {line}", markup=False)
            if example is None:
                continue
            console.rule(f"the first example of {name} ({len(example.datum.tokens)} tokens)", align="left", style="dim")
            console.print(highlighted(renderer, example.datum))
            for note in example.notes:
                console.print(f"[yellow]Note:[/] {escape(note)}")
    console.print("[dim]Green is trained, the rest is context.[/] The recipe is fine; leave out --dry-run to train.")


@dataclass(frozen=True)
class Shown:
    datum: Datum
    notes: Sequence[str] = ()


def first_example(recipe: Recipe, name: str, renderer: Renderer, heldout: HeldOut, tally: Tally) -> Shown | None:
    """None where the example does not exist yet: pairs are sampled by the model of an earlier stage. tally: of what is
    changed and left out."""
    from aurify.data.formats import sft_data
    from aurify.loops.examples import first_datum, rows_of_demonstrations
    from aurify.pipeline.check import resolve_taskset
    from aurify.pipeline.heldout import stage_rows
    from aurify.pipeline.recipe import OnlineStage, build_algorithm

    stage = recipe.stages[name]
    taskset, limit = resolve_taskset(stage), stage.sampler.max_context
    if isinstance(stage, OnlineStage):
        assert taskset is not None
        return asyncio.run(try_environment(renderer, taskset, recipe.seed, stage.max_turns, limit))
    if stage.data.parts:
        rows = stage_rows(recipe, name, heldout)
        tally.add(rows.tally)
        datum = first_datum(rows, stage, renderer, build_algorithm(stage, stage.method).learns_from)
        return Shown(datum, renderer.notes()) if datum else None
    if stage.data.demonstrations is not None:
        assert taskset is not None
        rows = rows_of_demonstrations(taskset, 1, recipe.seed)
        return Shown(sft_data(rows.train, renderer, stage.train_on)[0], renderer.notes(rows.train[0]["messages"]))
    if stage.data.sample is not None:
        assert taskset is not None
        asyncio.run(try_environment(renderer, taskset, recipe.seed, TRIED_TURNS, limit))
    return None


async def try_environment(
    renderer: Renderer, taskset: TaskSet, seed: int, max_turns: int, max_context: int | None
) -> Shown:
    """Starts the environment of the first task for real. One of several turns is played, with an answer that is no
    answer in the place of the model's: a template that cannot write what the environment says is refused here."""
    from aurify.environments.rollout import build_datum, observe, rollout
    from aurify.environments.single_turn import SingleTurn
    from aurify.samplers.scripted import ScriptedSampler
    from aurify.types import Datum, SamplingParams

    task = next(iter(taskset.train(seed)))
    environment = taskset.environment(task)
    try:
        first = await observe(environment)
    finally:
        await environment.close()
    tokens = renderer.prompt(first.messages, first.tools)
    if type(environment) is SingleTurn:
        return Shown(Datum(tokens, [0.0] * len(tokens)), renderer.notes(first.messages))
    renderer.check_turns(first.messages, first.tools)
    sampler = ScriptedSampler(lambda prompt: renderer.reply(prompt, STAND_IN), renderer.tokenizer)
    trajectory = await rollout(
        task,
        taskset.environment(task),
        sampler,
        renderer,
        SamplingParams(max_tokens=10**6),
        max_context=max_context,
        max_turns=min(max_turns, TRIED_TURNS),
    )
    notes = renderer.notes(first.messages, first.tools, many_turns=max_turns > 1)
    tried = f"the environment was started and played, {STAND_IN!r} in the place of {len(sampler.prompts)} answers"
    return Shown(build_datum(trajectory), [tried, *notes])


def renderer_of(recipe: Recipe, stage: OfflineStage | OnlineStage) -> Renderer:
    """Of the model that the chain of stages begins with: training does not change the tokenizer."""
    from aurify.models.model import load_tokenizer
    from aurify.pipeline.recipe import make_renderer, reference

    name = stage.model.name
    while (earlier := reference(name)) is not None:
        name = recipe.stages[earlier].model.name
    return make_renderer(stage, load_tokenizer(name))


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
