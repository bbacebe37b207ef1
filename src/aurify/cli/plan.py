"""What `aurify train --dry-run` shows: a row a stage, and what the model will read, token by token."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from aurify.config import prefix_errors

if TYPE_CHECKING:
    from rich.text import Text

    from aurify.pipeline.plan import Plan, PlannedStage
    from aurify.renderer import Renderer
    from aurify.types import Datum, Task

MAX_LOOKED_AT = 200  # tasks, until there is one of each that is mixed
TRIED_TURNS = 3  # of an environment, in a dry run
STAND_IN = "I do not know."
MAX_SHOWN = 3000  # characters of an example
OPEN, CLOSE = "\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}", "\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"


def show_plan(plan: Plan) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from aurify.pipeline.plan import describe

    console = Console(highlight=False)
    colours = console.color_system is not None and not console.no_color
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "what is trained", "on what"):  # three, so that they fit a narrow terminal
        table.add_column(column, overflow="fold")
    for row in map(describe, plan.stages.values()):
        trained = f"{row['method']} of {row['model']} ({row['weights']})"
        table.add_row(row["stage"], trained, f"{row['learns from']}, {row['length']}")
    console.print(table)
    for name, stage in plan.stages.items():
        with prefix_errors(f"stages.{name}"):
            renderer = open_renderer(plan, stage)
            for line in describe_examples(stage):
                console.print(f"{name}: {line}", markup=False)
            example = first_example(plan, stage, renderer)
            if example is None:
                continue
            console.rule(f"the first example of {name} ({len(example.datum.tokens)} tokens)", align="left", style="dim")
            console.print(shorten(highlight(renderer, example.datum, colours)))
            for note in example.notes:
                console.print(f"[yellow]Note:[/] {escape(note)}")
    trained = "Green" if colours else f"What stands between {OPEN} and {CLOSE}"
    console.print(f"[dim]{trained} is trained, the rest is context.[/]")
    console.print("The recipe is fine; leave out --dry-run to train.")


def describe_examples(stage: PlannedStage) -> list[str]:
    """What was changed or left out of the rows of a stage, and how many of them are held out."""
    from aurify.pipeline.heldout import describe_split

    if stage.examples is None:
        return []
    split = describe_split(stage, len(stage.examples.train), len(stage.examples.heldout))
    return [*stage.examples.tally.lines(), *([split] if split else [])]


@dataclass(frozen=True)
class Shown:
    datum: Datum
    notes: Sequence[str] = ()


def first_example(plan: Plan, stage: PlannedStage, renderer: Renderer) -> Shown | None:
    """None where the example does not exist yet: pairs are sampled by the model of an earlier stage."""
    from aurify.data.example import Chat
    from aurify.loops.examples import demonstrate, first_datum
    from aurify.pipeline.recipe import OnlineStage

    options, taskset, seed = stage.options, stage.taskset, plan.recipe.seed
    if isinstance(options, OnlineStage):
        return asyncio.run(try_environment(stage, renderer, seed))
    if stage.examples is not None:
        datum = first_datum(stage.examples, options, renderer)
        return Shown(datum, renderer.notes()) if datum else None
    if options.data.demonstrations is not None:
        assert taskset is not None
        examples = demonstrate(taskset, 1, seed)
        datum = first_datum(examples, options, renderer)
        messages = [message for example in examples.train if isinstance(example, Chat) for message in example.messages]
        return Shown(datum, renderer.notes(messages)) if datum else None
    if options.data.sample is not None:
        asyncio.run(try_environment(stage, renderer, seed))
    return None


async def try_environment(stage: PlannedStage, renderer: Renderer, seed: int) -> Shown:
    """Starts the environment of the first task for real, and where several are mixed, that of the first of each."""
    assert stage.taskset is not None
    missing, shown = {task.part for task in stage.taskset.heldout}, []
    for task in islice(stage.taskset.train(seed), MAX_LOOKED_AT):
        if task.part in missing or not shown:
            missing.discard(task.part)
            shown.append(await try_task(stage, renderer, task))
        if not missing:
            break
    notes = dict.fromkeys(note for each in shown for note in each.notes)
    return replace(shown[0], notes=list(notes))


async def try_task(stage: PlannedStage, renderer: Renderer, task: Task) -> Shown:
    """An environment of several turns is played, with a text that is no answer instead of the model's: a template that
    cannot write what the environment says is refused here."""
    from aurify.environments.hosting import host_environment
    from aurify.environments.rollout import build_data, observe, rollout
    from aurify.environments.single_turn import SingleTurn
    from aurify.loops.units import join_rows
    from aurify.samplers.scripted import ScriptedSampler
    from aurify.types import Datum, SamplingParams

    assert stage.taskset is not None
    factory, seconds = stage.taskset.environment, stage.options.rollouts.step_seconds
    limits, history = stage.options.limits, stage.options.rollouts.history
    async with host_environment(factory, task, seconds=seconds) as environment:
        try:
            first = await observe(environment)
        except Exception:
            with suppress(Exception):
                await environment.close()
            raise
        await environment.close()
    tokens = renderer.prompt(first.messages, first.tools)
    if type(environment.inner) is SingleTurn:
        return Shown(Datum(tokens, [0.0] * len(tokens)), renderer.notes(first.messages))
    renderer.check_turns(first.messages, first.tools)
    sampler = ScriptedSampler(lambda prompt: renderer.reply(prompt, STAND_IN), renderer.tokenizer)
    async with host_environment(factory, task, seconds=seconds) as environment:
        trajectory = await rollout(
            task,
            environment,
            sampler,
            renderer,
            SamplingParams(max_tokens=10**6),
            max_context=stage.options.sampler.max_context,
            limits=replace(limits, turns=min(limits.turns, TRIED_TURNS)),
            history=history,
        )
    notes = renderer.notes(first.messages, first.tools, history=history if limits.turns > 1 else None)
    tried = f"the environment was started and played, with {STAND_IN!r} for {len(sampler.prompts)} answers"
    return Shown(join_rows(build_data(trajectory, unit=0)), [tried, *notes])


def open_renderer(plan: Plan, stage: PlannedStage) -> Renderer:
    """That of the model which the chain of stages begins with: training does not change the tokenizer."""
    from aurify.models.model import load_tokenizer
    from aurify.pipeline.recipe import make_renderer, reference

    name = stage.options.model.name
    while (earlier := reference(name)) is not None:
        name = plan.recipe.stages[earlier].model.name
    return make_renderer(stage.options, load_tokenizer(name))


def highlight(renderer: Renderer, example: Datum, colours: bool) -> Text:
    """The text with special tokens, trained parts in green, or between marks where there are no colours."""
    from rich.text import Text

    text = Text()
    for tokens, trained in join_runs(example):
        part = renderer.tokenizer.decode(tokens)
        text.append(f"{OPEN}{part}{CLOSE}" if trained and not colours else part, style="green" if trained else "dim")
    return text


def shorten(text: Text) -> Text:
    """Without the middle of a text that fills more than a screen."""
    from rich.text import Text

    if len(text) <= MAX_SHOWN:
        return text
    head, tail = MAX_SHOWN * 2 // 3, MAX_SHOWN // 3
    gap = f"\n[... {len(text) - head - tail:,} characters left out ...]\n"
    return Text.assemble(text[:head], (gap, "yellow"), text[-tail:])


def join_runs(example: Datum) -> list[tuple[list[int], bool]]:
    """Neighbouring tokens that are all trained, or all not, together: a character may span several tokens."""
    runs: list[tuple[list[int], bool]] = []
    for token, weight in zip(example.tokens, example.weights, strict=True):
        if not runs or runs[-1][1] != (weight != 0):
            runs.append(([], weight != 0))
        runs[-1][0].append(token)
    return runs
