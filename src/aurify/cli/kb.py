"""`aurify kb`: what knowledge bases there are, how well they find, and one of them as a service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aurify.cli.names import KBS, find_kb, is_kb
from aurify.cli.serve import serve
from aurify.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from aurify.evaluation.comparison import Measured
    from aurify.evaluation.retrieval import Question
    from aurify.knowledge.knowledge_base import KnowledgeBase

kb = typer.Typer(no_args_is_help=True, help="Knowledge bases: list, describe, measure, serve.")
Name = Annotated[str, typer.Argument(metavar="KB", help="A name under kb/, or a folder with a slash.")]


@kb.callback()
def group() -> None:
    """Knowledge bases: list, describe, measure, serve."""


kb.command()(serve)


@kb.command(name="list")
def list_all() -> None:
    """List the knowledge bases under kb/."""
    from aurify.knowledge.knowledge_base import KnowledgeBase

    folders = sorted(folder for folder in KBS.iterdir() if is_kb(folder)) if KBS.is_dir() else []
    if not folders:
        raise UserError(f"there is no knowledge base in {KBS}/; `aurify ingest PATH --kb NAME` makes one")
    for folder in folders:
        base = KnowledgeBase.open(folder)
        typer.echo(f"{folder.name}: {len(base.digests())} documents, {base.store.num_chunks()} passages")


@kb.command()
def info(
    name: Name, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False
) -> None:
    """Say what a knowledge base holds and how it is searched."""
    from aurify.knowledge.knowledge_base import KnowledgeBase

    folder = find_kb(name)
    base = KnowledgeBase.open(folder)
    records = base.records()
    sources: dict[str, int] = {}
    formats: dict[str, int] = {}
    for record in records:
        sources[record.source] = sources.get(record.source, 0) + 1
        formats[record.format] = formats.get(record.format, 0) + 1
    facts = {
        "folder": str(folder),
        "documents": len(records),
        "passages": base.store.num_chunks(),
        "tokens": sum(record.num_tokens for record in records),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "formats": formats,
        "sources": sources,
        **asdict(base.settings),
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        words = ", ".join(f"{part or '-'} {what}" for part, what in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{key:10} {words}")


@kb.command(name="eval")
def evaluate(
    name: Name,
    queries: Annotated[
        Path, typer.Option(help='JSON lines: {"query": ..., "document": id}; "lines": [first, last] for a passage.')
    ],
    rerank: Annotated[
        str | None, typer.Option(help="Also with this second stage: cross-encoder:MODEL or maxsim:MODEL.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose the fusion on half of the questions, report the other half, keep it.")
    ] = False,
    passages: Annotated[bool, typer.Option("--all-passages", help="Several passages of one document, too.")] = False,
    limit: Annotated[int | None, typer.Option(help="Ask the first so many questions.", show_default="all")] = None,
    timed: Annotated[int, typer.Option(help="Questions asked one by one for the latency.")] = 100,
    plot: Annotated[Path | None, typer.Option(help="Where the picture goes.", show_default="KB/eval.svg")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Measure MRR@10, recall@k, nDCG@10 and latency on questions with known answers."""
    from rich.console import Console

    from aurify.evaluation.retrieval import halves, read_questions
    from aurify.knowledge.knowledge_base import KnowledgeBase

    for option, number in (("--limit", limit), ("--timed", timed)):
        if number is not None and number < 1:
            raise UserError(f"{option} is {number}; expected at least 1")
    folder = find_kb(name)
    base = KnowledgeBase.open(folder)
    questions = read_questions(queries)[:limit]
    check_known(base, questions, queries)
    console = Console(stderr=True, highlight=False)
    if tune:
        tuned, questions = halves(questions)
        if not tuned or not questions:
            raise UserError(f"{queries}: too few questions to tune on one half and report on the other")
        tune_on(base, tuned, passages, console)
    measured = compare(base, questions, rerank, not passages, timed, console)
    if as_json:
        typer.echo(json.dumps({"kb": str(folder), "results": [one.record() for one in measured]}))
    else:
        show(measured)
    from aurify.cli.kb_chart import chart

    picture = plot or folder / "eval.svg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(chart(measured), encoding="utf-8")
    if not as_json:
        typer.echo(f"\n{len(questions)} questions; picture: {picture}")


def check_known(base: KnowledgeBase, questions: list[Question], file: Path) -> None:
    """An answer that is not there could never be found: the numbers would be about something else."""
    known = base.digests()
    missing = [one.document for question in questions for one in question.answers if one.document not in known]
    if missing:
        raise UserError(
            f"{file}: {len(missing)} answers are not in {base.folder}, such as {missing[0]!r}; expected the ids of "
            "documents as `aurify search` shows them"
        )


def tune_on(base: KnowledgeBase, questions: list[Question], passages: bool, console: Console) -> None:
    from aurify.evaluation.comparison import tune

    with bar(console, f"tuning on {len(questions)} questions", len(questions)) as advance:
        (best, quality), *_ = tune(base, questions, per_document=not passages, progress=advance)
    base.remember(best)
    console.print(
        f"best of these {len(questions)} questions: {best.mode}"
        + (f", {best.fusion}, dense weight {best.dense_weight:g}" if best.mode == "hybrid" else "")
        + (f", k {best.k:g}" if best.mode == "hybrid" and best.fusion == "rrf" else "")
        + f" (MRR@10 {quality.mrr:.3f}); kept in {base.folder / 'settings.json'}"
    )


def compare(
    base: KnowledgeBase, questions: list[Question], rerank: str | None, per_document: bool, timed: int, console: Console
) -> list[Measured]:
    from aurify.evaluation.comparison import measure_search, modes
    from aurify.knowledge.rerank import load_reranker

    second = load_reranker(rerank)
    ways = modes(base.settings.search)
    if second is not None:
        ways["reranked"] = base.settings.search
    measured = []
    for name, options in ways.items():
        with bar(console, name, len(questions)) as advance:
            measured.append(
                measure_search(
                    base,
                    questions,
                    name,
                    options,
                    rerank=second if name == "reranked" else None,
                    per_document=per_document,
                    num_timed=timed,
                    progress=advance,
                )
            )
    return measured


def show(measured: list[Measured]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from aurify.evaluation.comparison import headings, row, stage_rows

    for columns, rows in (
        (headings(), map(row, measured)),
        (("stage", "p50 ms", "p95 ms"), stage_rows(measured)),
    ):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=True)
        for cells in rows:
            table.add_row(*cells)
        Console(highlight=False).print(table)


@contextmanager
def bar(console: Console, words: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gone when it is full; nothing where nobody watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(words, total=total)
        yield lambda num: progress.advance(task, num)
