"""What `aurify train --dry-run` shows: a row a stage, and what the model will read, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurify.cli.memory import show_memory
from aurify.config import prefix_errors

if TYPE_CHECKING:
    from rich.text import Text

    from aurify.pipeline.plan import Plan, PlannedStage
    from aurify.renderer import Renderer
    from aurify.types import Datum

MAX_SHOWN = 3000  # characters of an example
OPEN, CLOSE = "\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}", "\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"


def print_plan(plan: Plan) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from aurify.pipeline.plan import describe_stage
    from aurify.renderer.features import list_features

    told = ""
    console = Console(highlight=False)
    colours = console.color_system is not None and not console.no_color
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "what is trained", "on what"):  # three, so that they fit a narrow terminal
        table.add_column(column, overflow="fold")
    for row in map(describe_stage, plan.stages.values()):
        trained = f"{row['method']} of {row['model']} ({row['weights']})"
        table.add_row(row["stage"], trained, f"{row['learns from']}, {row['length']}")
    console.print(table)
    for override in plan.fitted:
        console.print(f"memory: auto sets {override}", markup=False)
    show_memory(plan, console, parts=False)
    for name, stage in plan.stages.items():
        with prefix_errors(f"stages.{name}"):
            for line in stage.lines:
                console.print(f"{name}: {line}", markup=False)
            if stage.example is None:
                continue
            renderer = open_renderer(plan, stage)
            found = "; ".join(f"{feature}: {finding}" for feature, finding in list_features(renderer).items())
            if found != told:
                console.print(f"{name}: found in the chat template: {found}", markup=False)
            told, num_tokens = found, len(stage.example.tokens)
            console.rule(f"the first example of {name} ({num_tokens} tokens)", align="left", style="dim")
            console.print(cut_screen_middle(highlight_trained(renderer, stage.example, colours)))
            for note in stage.notes:
                console.print(f"[yellow]Note:[/] {escape(note)}")
    trained = "Green" if colours else f"What stands between {OPEN} and {CLOSE}"
    console.print(f"[dim]{trained} is trained, the rest is context.[/]")
    console.print("The recipe is fine; leave out --dry-run to train.")


def open_renderer(plan: Plan, stage: PlannedStage) -> Renderer:
    """That of the model which the chain of stages begins with: training does not change the tokenizer."""
    from aurify.models.model import load_tokenizer
    from aurify.pipeline.contents import find_origin_model
    from aurify.pipeline.recipe import build_stage_renderer

    return build_stage_renderer(stage.options, load_tokenizer(find_origin_model(plan, stage.options.model).name))


def highlight_trained(
    renderer: Renderer, example: Datum, colours: bool, marks: tuple[str, str] = (OPEN, CLOSE)
) -> Text:
    """The text with special tokens, trained parts in green, or between marks where there are no colours."""
    from rich.text import Text

    text = Text()
    for tokens, trained in join_trained_spans(example):
        part = renderer.tokenizer.decode(tokens)
        text.append(part.join(marks) if trained and not colours else part, style="green" if trained else "dim")
    return text


def cut_screen_middle(text: Text) -> Text:
    """Without the middle of a text that fills more than a screen."""
    from rich.text import Text

    if len(text) <= MAX_SHOWN:
        return text
    head, tail = MAX_SHOWN * 2 // 3, MAX_SHOWN // 3
    gap = f"\n[... {len(text) - head - tail:,} characters left out ...]\n"
    return Text.assemble(text[:head], (gap, "yellow"), text[-tail:])


def join_trained_spans(example: Datum) -> list[tuple[list[int], bool]]:
    """Neighbouring tokens that are all trained, or all not, together: a character may span several tokens."""
    runs: list[tuple[list[int], bool]] = []
    for token, weight in zip(example.tokens, example.weights, strict=True):
        if not runs or runs[-1][1] != (weight != 0):
            runs.append(([], weight != 0))
        runs[-1][0].append(token)
    return runs
