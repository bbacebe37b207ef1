"""What a person sees while a run goes on: a header a stage, a line a step, a bar with the time left, and at the end a
table.

Where the output is no terminal there is no bar and no colour: plain lines, as in each stage's console.log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from aurify.tracking.figures import (
    format_duration,
    format_heldout_error,
    format_heldout_number,
    format_short_number,
    is_heldout_share,
    judge_heldout_change,
)
from aurify.tracking.samples import (
    Block,
    Sample,
    describe_sample_outcome,
    find_largest_advantage,
    record_sample,
    split_sample_blocks,
)
from aurify.tracking.trackers import Tracker
from aurify.types import Group, Metrics, Trajectory

# metric -> (heading, width, format); a line shows those that its stage has, in this order
COLUMNS: dict[str, tuple[str, int, str]] = {
    "reward/accuracy": ("accuracy", 9, ".3f"),
    "reward/mean": ("reward", 8, ".3f"),
    "reward/margin": ("margin", 8, "+.3f"),
    "reward/gap": ("gap", 8, "+.3f"),
    "rollout/length": ("length", 8, ".1f"),
    "rollout/truncated": ("cut", 6, ".0%"),
    "loss": ("loss", 10, ".4f"),
    "loss/kl": ("kl", 9, ".4f"),
    "optim/grad_norm": ("grad", 8, ".2f"),
    "optim/lr": ("lr", 9, "short"),
    "ledger/groups_without_spread": ("flat", 6, ".0f"),  # groups of equal rewards: nothing to learn from
    "time/tokens_per_second": ("tok/s", 8, "short"),
    "time/sampled_per_second": ("tok/s", 8, "short"),
    "memory/peak_gb": ("GB", 6, ".1f"),
    "time/step": ("s", 7, ".1f"),
}
HEADINGS_EVERY = 40  # lines
BARS_FROM = 104  # columns of the terminal
MAX_SHOWN = 600  # characters of a text
GROUPS_SHOWN = 2  # of the samples of a step
STYLES = {"environment": "cyan", "guidance": "magenta", "template": "dim"}  # by who wrote it


class Console(Tracker):
    """Writes to the terminal and, without colours, to the console.log of the stage. On a terminal a bar stays below."""

    def __init__(self, rich: RichConsole | None = None) -> None:
        self.rich = rich or RichConsole(highlight=False)
        self.show_samples = False
        self.log: RichConsole | None = None
        self.progress: Progress | None = None
        self.title = self.description = ""  # of the stage
        self.total, self.num_lines = 0, 0
        self.columns: list[str] = []

    def print(self, *objects: Any) -> None:
        plain = all(isinstance(thing, (str, Text)) for thing in objects)  # lines are left whole, tables fitted
        self.rich.print(*objects, soft_wrap=plain)
        if self.log is not None:
            self.log.print(*objects, soft_wrap=plain)
            self.log.file.flush()

    def header(self, title: str, description: str = "") -> None:
        """Opens a stage. Its console.log does not exist yet and gets the header when it is opened."""
        self.title, self.description = title, description
        self.print_header(self.rich)

    def print_header(self, console: RichConsole) -> None:
        console.print()
        console.rule(Text(self.title, style="bold yellow"), align="left", style="dim")
        if self.description:
            console.print(Text(self.description, style="dim"), soft_wrap=True)

    def show_waiting(self, text: str) -> AbstractContextManager[Any]:
        """Around something that takes seconds: a spinner on a terminal, a line elsewhere."""
        if self.rich.is_terminal:
            return self.rich.status(escape(text))
        self.rich.print(Text(text, style="dim"), soft_wrap=True)
        return nullcontext()

    def open_log(self, path: Path, *, show_samples: bool = False) -> None:
        """Until `finish`, output also goes to this file, the stage's header included."""
        self.finish()
        self.show_samples = show_samples
        stream = path.open("a", encoding="utf-8", errors="backslashreplace")
        self.log = RichConsole(file=stream, width=120, force_terminal=False, color_system=None, highlight=False)
        self.print_header(self.log)

    def start(self, total: int, start: int) -> None:
        self.total, self.num_lines, self.columns = total, 0, []
        if self.rich.is_terminal and start < total:
            self.progress = Progress(
                TextColumn("{task.description}"), BarColumn(32), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("[dim]left[/]"), TimeRemainingColumn(), console=self.rich, transient=True,
                speed_estimate_period=600,  # a step may take a minute
            )  # fmt: skip
            self.progress.add_task(escape(self.title), total=total, completed=start)
            self.progress.start()

    def step(self, step: int, metrics: Metrics) -> None:
        known = [name for name in COLUMNS if name in metrics or name in self.columns]
        if known != self.columns or self.num_lines % HEADINGS_EVERY == 0:
            self.columns, self.num_lines = known, 0
            self.print(Text(format_console_headings(known, self.total), style="dim"))
        self.print(format_console_step(step, self.total, metrics, known))
        self.num_lines += 1
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=step)
            if step >= self.total:
                self.stop_bar()

    def samples(self, step: int, groups: Sequence[Group]) -> None:
        """The best and the worst trajectory of the first groups."""
        for group in groups[:GROUPS_SHOWN] if self.show_samples else ():
            shown = pick_console_samples([t for t in group.trajectories if t.source == "policy"])
            if not shown:
                continue
            expected = f"   expected: {group.task.answer}" if group.task.answer else ""
            question = clean_console_text(group.task.prompt[-1]["content"], 160) + clean_console_text(expected)
            self.print(Text("  " + question, style="dim"))
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_column(justify="right", style="bold", min_width=8)
            grid.add_column(overflow="fold")
            for trajectory in shown:
                grid.add_row(f"{trajectory.reward:+.2f}", paint_console_sample(record_sample(group, trajectory)))
            self.print(grid)

    def event(self, text: str, *, quiet: bool) -> None:
        if not quiet:
            self.print(Text(text, style="dim"))

    def finish(self) -> None:
        self.stop_bar()
        if self.log is not None:
            self.log.file.close()
            self.log = None

    def stop_bar(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def summary(self, results: Mapping[str, Mapping[str, Any]]) -> None:
        """The table at the end: one row a stage, its held-out number before and after."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for heading in ("stage", "method", "held-out"):
            table.add_column(heading, overflow="fold")
        for heading in ("before", "after", "change"):
            table.add_column(heading, justify="right", no_wrap=True)
        bars = self.rich.width >= BARS_FROM and not self.rich.options.ascii_only
        if bars:
            table.add_column("", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        for stage, result in results.items():
            change, verdict = judge_heldout_change(result)
            colour = {"better": "green", "worse": "red", "same": "dim"}[verdict]
            cells: list[str | Text] = [
                Text(stage, style="bold"),
                Text(str(result.get("method", ""))),
                Text(describe_console_measure(result)),
                self.format_measured(result, "before"),
                self.format_measured(result, "after"),
                Text("-" if change is None else f"{change:+.3f}", style=colour),
            ]
            if bars:
                cells.append(draw_console_bar(result))
            cells.append(format_duration(result["seconds"]) if "seconds" in result else "-")
            table.add_row(*cells)
        self.print()
        self.print(table)

    def format_measured(self, result: Mapping[str, Any], when: str) -> Text:
        """A number with its error, which stands below the number where the terminal is narrow."""
        error = format_heldout_error(result.get(f"details_{when}") or {})
        gap = " " if self.rich.width >= BARS_FROM else "\n"
        number = Text(format_heldout_number(result.get(when)), style="bold" if when == "after" else "")
        return Text.assemble(number, (f"{gap}{error}" if error else "", "dim"))


def describe_console_measure(result: Mapping[str, Any]) -> str:
    """What was measured, on how many."""
    details = result.get("details_after") or result.get("details_before") or {}
    name = str(result.get("measure", "-")).removeprefix("held-out ")
    return f"{name} ({details['num']:,})" if "num" in details else name


def format_console_headings(columns: Sequence[str], total: int) -> str:
    first = "step".rjust(2 * len(str(total)) + 1)
    return first + "".join(f"{COLUMNS[name][0]:>{COLUMNS[name][1]}}" for name in columns)


def format_console_step(step: int, total: int, metrics: Metrics, columns: Sequence[str]) -> Text:
    """One value under each heading; "-" for what this step does not have."""
    first = f"{step:>{len(str(total))}}/{total}".rjust(len("step"))
    line = Text(first)
    line.stylize("dim", first.index("/"))
    for name in columns:
        _, width, form = COLUMNS[name]
        value = metrics.get(name)
        if value is None:
            cell, style = "-", "dim"
        elif not math.isfinite(value):
            cell, style = str(value), "bold red"
        else:
            cell = format_short_number(value) if form == "short" else format(value, form)
            style = "green" if name.startswith("reward/") else "dim" if name.startswith(("time/", "memory/")) else ""
        line.append(" " + cell.rjust(width - 1), style=style)
    return line


def draw_console_bar(result: Mapping[str, Any], width: int = 20) -> Text:
    """A bar: the share before, and what the stage won or lost, out of all."""
    if not is_heldout_share(result) or judge_heldout_change(result)[0] is None:
        return Text("")
    before, after = round(result["before"] * width), round(result["after"] * width)
    kept, moved = min(before, after), abs(after - before)
    sign, colour = ("━", "green") if after > before else ("╌", "red")
    return Text.assemble(("━" * kept, "dim"), (sign * moved, colour), ("·" * (width - kept - moved), "dim"))


def pick_console_samples(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The best one first; one alone where all earned the same; none where nothing was judged."""
    judged = sorted((t for t in trajectories if t.reward is not None), key=lambda t: t.reward or 0.0)
    if not judged:
        return []
    return [judged[-1]] if judged[0].reward == judged[-1].reward else [judged[-1], judged[0]]


def paint_console_sample(sample: Sample) -> Text:
    """What came after the prompt, and how it ended. What the policy wrote is green or red by its advantage, bold where
    that is large; each turn of a conversation says it in words too."""
    blocks = split_sample_blocks(sample)[sample["num_prompt_messages"] :]
    largest, several = find_largest_advantage(blocks), len(blocks) > 1
    text = Text()
    for block in blocks:
        if several:
            text.append(clean_console_text(" · ".join([block.role, *block.facts])) + "\n", style="italic dim")
        text.append_text(paint_console_block(block, largest))
        text.append("\n" if several else "")
    if not several and "spans" in sample:
        text.append(f" ({blocks[0].facts[0]})", style="dim")
    if sample["truncated"] or several:
        text.append(
            f"{'' if several else ' '}({describe_sample_outcome(sample)})",
            style="red" if sample["truncated"] else "dim",
        )
    return text


def paint_console_block(block: Block, largest: float) -> Text:
    """largest: the size of the largest advantage."""
    text, room = Text(), MAX_SHOWN
    for span in block.spans:
        words = " ".join(span.text.split()) + " " if span.author == "template" and len(block.spans) > 1 else span.text
        style = STYLES.get(span.author, "")
        if span.author == "policy" and span.advantage:
            colour = "green" if span.advantage > 0 else "red"
            style = f"bold {colour}" if abs(span.advantage) > largest / 2 else colour
        if room > 0:
            text.append(clean_console_text(words, room), style=style)
        room -= len(words)
    text.rstrip()
    return text


def clean_console_text(text: str, limit: int = MAX_SHOWN) -> str:
    """A model's text, cut to one screen, without characters that steer a terminal."""
    text = text if len(text) <= limit else text[:limit] + " …"
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair
    return "".join(sign if sign in "\n\t" or sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
