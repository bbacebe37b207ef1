"""`aurify kb`: what knowledge bases there are, how well they find, and one of them as a service."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurify.cli.names import KBS, is_kb, resolve_kb_argument
from aurify.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from aurify.evaluation.comparison import Measured
    from aurify.evaluation.retrieval import Question
    from aurify.knowledge.knowledge_base import KnowledgeBase
    from aurify.knowledge.types import Hit

kb = typer.Typer(no_args_is_help=True, help="Knowledge bases: list, describe, measure, serve.")
Name = Annotated[str, typer.Option("--kb", help="A name under kb/, or a folder with a slash.")]
Bare = Annotated[str, typer.Argument(metavar="KB", hidden=True)]  # `kb info notes` is `kb info --kb notes`
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Mode = Annotated[str | None, typer.Option(help="dense, bm25 or hybrid; otherwise what the knowledge base remembers.")]
Rerank = Annotated[str | None, typer.Option(help="A second stage: cross-encoder:MODEL or maxsim:MODEL.")]
AllPassages = Annotated[bool, typer.Option("--all-passages", help="Several passages of one document, too.")]
LEAST_TO_TUNE = 20  # questions


def open_kb_argument(name: str, bare: str) -> KnowledgeBase:
    from aurify.knowledge.knowledge_base import KnowledgeBase

    if name and bare:
        raise UserError(f"--kb {name} and {bare}: give one knowledge base")
    return KnowledgeBase.open(resolve_kb_argument(name or bare))


@kb.command(name="list")
def list_kbs() -> None:
    """List the knowledge bases under kb/."""
    from aurify.knowledge.knowledge_base import KnowledgeBase

    folders = sorted(folder for folder in KBS.iterdir() if is_kb(folder)) if KBS.is_dir() else []
    if not folders:
        raise UserError(f"there is no knowledge base in {KBS}/; `aurify ingest PATH --kb NAME` makes one")
    for folder in folders:
        base = KnowledgeBase.open(folder)
        typer.echo(f"{folder.name}: {len(base.digests())} documents, {base.store.num_chunks()} passages")


@kb.command(name="info")
def print_kb_info(name: Name = "", bare: Bare = "", as_json: Json = False) -> None:
    """Say what a knowledge base holds and how it is searched."""
    base = open_kb_argument(name, bare)
    records = base.records()
    facts = {
        "folder": str(base.folder),
        "documents": len(records),
        "passages": base.store.num_chunks(),
        "tokens": sum(record.num_tokens for record in records),
        "bytes": sum(file.stat().st_size for file in base.folder.rglob("*") if file.is_file()),
        "formats": Counter(record.format for record in records),
        "sources": Counter(record.source for record in records),
        **asdict(base.settings),
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        words = ", ".join(f"{part or '-'} {what}" for part, what in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{key:10} {words}")


@kb.command(name="serve")
def serve_kb(
    name: Name = "",
    bare: Bare = "",
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 lets everybody in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any free one.")] = 8765,
    topk: Annotated[int, typer.Option(help="Passages a query, for requests that leave it open.")] = 3,
    mode: Mode = None,
    rerank: Rerank = None,
) -> None:
    """Answer POST /retrieve from a knowledge base, in the protocol of Search-R1, until Ctrl-C."""
    from aurify.knowledge.rerank import load_reranker
    from aurify.serving.knowledge import ServiceOptions, run_service

    options = ServiceOptions(host=host, port=port, topk=topk)
    base = open_kb_argument(name, bare)
    second = load_reranker(rerank)

    def search(queries: list[str], limit: int) -> list[list[Hit]]:
        """One hit a document is for people; passages are what a model asks for."""
        return base.search_many(queries, limit, mode, rerank=second, per_document=False)  # type: ignore[arg-type]

    search(["warm up"], 1)  # loads the models: the first request should not wait for them
    if not options.local:
        warning = f"{host} is open to everybody who can reach this machine, without a password: they can read "
        typer.secho(f"{warning}{base.folder}.", fg=typer.colors.YELLOW, err=True)

    def announce(url: str) -> None:
        typer.echo(f"{base.folder}: POST {url} answers. Ctrl-C ends.")

    run_service(search, options, {"kb": base.folder.name}, announce)


@kb.command(name="eval")
def evaluate_kb(
    queries: Annotated[
        Path,
        typer.Option(help='JSON lines: {"query": ..., "document": id}; "lines" (first, last) for a passage.'),
    ],
    name: Name = "",
    bare: Bare = "",
    rerank: Rerank = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose the fusion on half of the questions, report the other half, keep it.")
    ] = False,
    passages: AllPassages = False,
    limit: Annotated[int | None, typer.Option(help="Ask the first so many questions.", show_default="all")] = None,
    timed: Annotated[int, typer.Option(help="Questions asked one by one for the latency.")] = 100,
    plot: Annotated[Path | None, typer.Option(help="Where the picture goes.", show_default="KB/eval.svg")] = None,
    as_json: Json = False,
) -> None:
    """Measure MRR@10, recall@k, nDCG@10 and latency on questions with known answers."""
    from rich.console import Console

    from aurify.cli.kb_chart import draw_kb_chart
    from aurify.evaluation.retrieval import read_retrieval_questions, split_retrieval_questions

    for option, number in (("--limit", limit), ("--timed", timed)):
        if number is not None and number < 1:
            raise UserError(f"{option} is {number}; expected at least 1")
    base = open_kb_argument(name, bare)
    questions = read_retrieval_questions(queries)[:limit]
    check_kb_answers(base, questions, queries)
    console = Console(stderr=True, highlight=False)
    if tune:
        num = len(questions)
        tuned, questions = split_retrieval_questions(questions)
        if num < LEAST_TO_TUNE or not tuned or not questions:
            raise UserError(
                f"{queries}: {num} questions are too few to choose the settings by; --tune needs {LEAST_TO_TUNE} or "
                "more. Add questions, or leave --tune out to measure the settings as they are"
            )
        tune_kb(base, tuned, passages, console)
    measured = measure_kb_modes(base, questions, rerank, passages, timed, console)
    picture = plot or base.folder / "eval.svg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(draw_kb_chart(measured), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"kb": str(base.folder), "results": [one.to_record() for one in measured]}))
    else:
        print_kb_tables(measured)
        typer.echo(f"\n{len(questions)} questions; picture: {picture}")


def check_kb_answers(base: KnowledgeBase, questions: list[Question], file: Path) -> None:
    """An answer that is not there could never be found: the numbers would be about something else."""
    known = base.digests()
    missing = [one.document for question in questions for one in question.answers if one.document not in known]
    if missing:
        raise UserError(
            f"{file}: {len(missing)} answers are not in {base.folder}, such as {missing[0]!r}; expected the ids of "
            "documents as `aurify search` shows them"
        )


def tune_kb(base: KnowledgeBase, questions: list[Question], passages: bool, console: Console) -> None:
    from aurify.evaluation.comparison import measure_fusions

    progress = make_progress_bar(console, f"tuning on {len(questions)} questions")
    (best, quality), *_ = measure_fusions(base, questions, per_document=not passages, progress=progress)
    base.remember(best)
    console.print(
        f"best of these {len(questions)} questions: {best.describe()} (MRR@10 {quality.mrr:.3f}); kept in "
        f"{base.folder / 'settings.json'}"
    )


def measure_kb_modes(
    base: KnowledgeBase, questions: list[Question], rerank: str | None, passages: bool, timed: int, console: Console
) -> list[Measured]:
    from aurify.evaluation.comparison import list_measured_modes, measure_search
    from aurify.knowledge.rerank import load_reranker

    second = load_reranker(rerank)
    measure = partial(measure_search, base, questions, per_document=not passages, num_timed=timed)
    measured = [
        measure(name, options, progress=make_progress_bar(console, name))
        for name, options in list_measured_modes(base.settings.search).items()
    ]
    if second is not None:
        progress = make_progress_bar(console, "reranked")
        measured.append(measure("reranked", base.settings.search, rerank=second, progress=progress))
    return measured


def make_progress_bar(console: Console, words: str) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """A bar that is gone when it is full; nothing where nobody watches."""
    from rich.progress import track

    return partial(track, description=words, console=console, transient=True, disable=not console.is_terminal)


def print_kb_tables(measured: list[Measured]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    from aurify.evaluation.comparison import HEADINGS, list_measured_stages

    rows = [one.to_row() for one in measured]
    for headings, cells in ((HEADINGS, rows), (("stage", "p50 ms", "p95 ms"), list_measured_stages(measured))):
        first, *others = headings
        columns = [Column(first, no_wrap=True), *(Column(name, justify="right", no_wrap=True) for name in others)]
        table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for row in cells:
            table.add_row(*row)
        Console(highlight=False).print(table)
