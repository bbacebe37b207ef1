"""What a person sees while a run goes on: a header a stage, a line a step, a bar with the time left, a table at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from aurify.types import Group, Metrics

# metric -> (heading, format); a line shows those that its step has, in this order
COLUMNS: dict[str, tuple[str, str]] = {
    "reward/mean": ("reward", "{:.3f}"),
    "reward/accuracy": ("accuracy", "{:.3f}"),
    "reward/margin": ("margin", "{:+.3f}"),
    "reward/gap": ("gap", "{:+.3f}"),
    "rollout/length": ("length", "{:.1f}"),
    "loss": ("loss", "{:.4f}"),
    "loss/kl": ("kl", "{:.4f}"),
    "optim/grad_norm": ("grad", "{:.2f}"),
    "ledger/groups_without_spread": ("flat groups", "{:.0f}"),
    "time/tokens_per_second": ("tok/s", "{:.0f}"),
    "time/sampled_per_second": ("sampled/s", "{:.0f}"),
    "memory/peak_gb": ("GB", "{:.1f}"),
    "time/step": ("s", "{:.1f}"),
}


def describe_step(step: int, total: int, metrics: Metrics) -> Text:
    line = Text(f"{step:>{len(str(total))}}/{total}", style="bold")
    for name, (heading, form) in COLUMNS.items():
        if name in metrics:
            line.append(f"  {heading} ", style="dim")
            value = form.format(metrics[name])
            line.append(value, style="green" if name.startswith("reward/") else "")
    return line


class Console:
    """Writes to the terminal and, without colours, to a file. On a terminal a bar stays below the lines; elsewhere there is none."""

    def __init__(self, rich: RichConsole | None = None) -> None:
        self.rich = rich or RichConsole(highlight=False)
        self.progress: Progress | None = None
        self.bar: Any = None
        self.file: RichConsole | None = None
        self.total = 0

    def log_to(self, path: Path | None) -> None:
        """Further output also goes to this file."""
        if self.file is not None:
            self.file.file.close()
        self.file = RichConsole(file=path.open("a", encoding="utf-8"), width=160, highlight=False) if path else None

    def print(self, *objects: Any) -> None:
        self.rich.print(*objects, soft_wrap=all(isinstance(o, (str, Text)) for o in objects))
        if self.file is not None:
            self.file.print(*objects, soft_wrap=True)
            self.file.file.flush()

    def header(self, title: str, description: str = "") -> None:
        self.rich.rule(f"[bold cyan]{escape(title)}[/]", align="left")
        if self.file is not None:
            self.file.rule(title, align="left")
        if description:
            self.print(Text(description, style="dim"))

    def begin(self, total: int, start: int) -> None:
        self.total = total
        if self.rich.is_terminal and total > 0:
            self.progress = Progress(
                TextColumn("  "), BarColumn(40), MofNCompleteColumn(), TextColumn("elapsed"), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), console=self.rich, transient=True,
            )  # fmt: skip
            self.bar = self.progress.add_task("steps", total=total, completed=start)
            self.progress.start()

    def step(self, step: int, metrics: Metrics) -> None:
        self.print(describe_step(step, self.total, metrics))
        if self.progress is not None:
            self.progress.update(self.bar, completed=step)

    def end(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def samples(self, groups: Sequence[Group], num: int = 2) -> None:
        """The best and the worst trajectory of the first groups."""
        for group in groups[:num]:
            judged = sorted((t for t in group.trajectories if t.reward is not None), key=lambda t: t.reward or 0.0)
            if judged:
                question = group.task.prompt[-1]["content"]
                body = "\n".join(f"[bold]{t.reward:+.2f}[/] {escape(t.text.strip()[:400])}" for t in {id(t): t for t in (judged[-1], judged[0])}.values())
                self.print(Panel(body, title=escape(question[:100]), title_align="left", border_style="dim"))

    def summary(self, results: Mapping[str, Mapping[str, Any]]) -> None:
        """The table at the end: one row a stage, its held-out number before and after."""
        table = Table(title="Held-out numbers", title_justify="left", header_style="bold")
        for heading in ("stage", "method", "what", "before", "after", "change", "time"):
            table.add_column(heading, justify="right" if heading in ("before", "after", "change", "time") else "left")
        for stage, result in results.items():
            before, after = result.get("before"), result.get("after")
            change = after - before if before is not None and after is not None else None
            colour = "green" if change and change > 0 else "red" if change and change < 0 else "dim"
            table.add_row(
                stage,
                str(result.get("method", "")),
                str(result.get("measure", "")),
                number(before),
                number(after),
                f"[{colour}]{change:+.3f}[/]" if change is not None else "-",
                f"{result['seconds']:.0f} s" if "seconds" in result else "-",
            )
        self.print(table)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
