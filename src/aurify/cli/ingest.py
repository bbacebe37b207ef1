"""`aurify ingest`: fill a knowledge base, or bring it up to date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from aurify.cli.names import is_kb, resolve_kb_argument
from aurify.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from aurify.knowledge.ingest import IngestSummary, Progress
    from aurify.knowledge.knowledge_base import KnowledgeBase

Patterns = list[str]
MB = 1_000_000


def ingest(
    location: Annotated[str, typer.Argument(metavar="PATH|URL", help="A folder, file, URL, list of URLs or sitemap.")],
    kb: Annotated[str, typer.Option(help="A name under kb/, or a folder with a slash; made if it is not there.")],
    prune: Annotated[bool, typer.Option("--prune", help="Remove what came from here and is gone.")] = False,
    include: Annotated[Patterns, typer.Option(help='Only these paths below the folder, such as "*.md".')] = [],  # noqa: B006
    exclude: Annotated[Patterns, typer.Option(help="Not these paths.")] = [],  # noqa: B006
    hidden: Annotated[bool, typer.Option("--hidden", help="Also what begins with a dot.")] = False,
    prefix: Annotated[str, typer.Option(help="Put this before the name of every document.")] = "",
    text: Annotated[str | None, typer.Option(help="JSON lines, CSV: the column with the text.")] = None,
    title: Annotated[str | None, typer.Option(help="JSON lines, CSV: the column with the title.")] = None,
    id: Annotated[str | None, typer.Option(help="JSON lines, CSV: the column with the id.")] = None,
    metadata: Annotated[
        str | None, typer.Option(help="JSON lines, CSV: columns to keep, with commas.", show_default="all others")
    ] = None,
    depth: Annotated[int, typer.Option(help="URL: follow links within the site so far; 0 is the page alone.")] = 0,
    max_pages: Annotated[int, typer.Option(help="URL: no more pages than this.")] = 1000,
    delay: Annotated[float, typer.Option(help="URL: seconds between two requests to a host.")] = 0.5,
    fresh: Annotated[bool, typer.Option("--fresh", help="URL: ask the servers again, not the cache.")] = False,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="URL: also hosts of this machine and its network.")
    ] = False,
    ignore_robots: Annotated[
        bool, typer.Option("--ignore-robots", help="URL: read what robots.txt forbids, where you may.")
    ] = False,
    max_mb: Annotated[float, typer.Option(help="Refuse texts larger than this.")] = 10,
    embedder: Annotated[
        str | None, typer.Option(help="New ones: a sentence-transformers model.", show_default="all-minilm-l6-v2")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="New ones: length of a passage.", show_default="256")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Read documents into a knowledge base; a second time, only what has changed."""
    from rich.console import Console

    from aurify.knowledge import ingest as reading
    from aurify.knowledge.reading.fetch import WebOptions
    from aurify.knowledge.reading.rows import Columns, ReadOptions

    names = None if metadata is None else tuple(name.strip() for name in metadata.split(",") if name.strip())
    options = reading.IngestOptions(
        read=ReadOptions(Columns(text, title, id, names), max_bytes=int(max_mb * MB)),
        web=WebOptions(depth, max_pages, delay, fresh, allow_private, robots=not ignore_robots),
        include=tuple(include),
        exclude=tuple(exclude),
        hidden=hidden,
        prefix=prefix,
        prune=prune,
    )
    reading.check_ingest_location(location)
    folder = resolve_kb_argument(kb, new=True)
    try:
        base = open_or_create_kb(folder, embedder, max_tokens)
        with show_ingest_progress(Console(stderr=True, highlight=False)) as progress:
            summary = reading.ingest(base, location, options, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what was stored stays; the same command goes on from there") from None
    if as_json:
        typer.echo(json.dumps(list_summary_lines(summary)))
    else:
        print_ingest_summary(Console(highlight=False, soft_wrap=True), folder, summary)
    if not summary.added.documents and summary.refusals.counts:
        raise UserError(f"{location}: nothing in it could be read: {'; '.join(summary.refusals.lines()[:3])}")
    if not summary.added.documents and not summary.removed:
        raise UserError(f"{location}: there is no document in it that this command reads")


def open_or_create_kb(folder: Path, embedder: str | None, max_tokens: int | None) -> KnowledgeBase:
    """The embedder and the length of passages are settled when a knowledge base is made."""
    from pathlib import Path

    from aurify.knowledge.chunking.chunk import ChunkOptions
    from aurify.knowledge.embedding import MINILM, load_embedder
    from aurify.knowledge.knowledge_base import KnowledgeBase

    if embedder is not None and Path(embedder).expanduser().is_dir():
        embedder = str(Path(embedder).expanduser().resolve())
    if not is_kb(folder):
        chunking = ChunkOptions() if max_tokens is None else ChunkOptions(max_tokens=max_tokens)
        return KnowledgeBase.create(folder, load_embedder(embedder or MINILM), chunking)  # first see that it loads
    base = KnowledgeBase.open(folder)
    for option, wanted, held in (
        ("--embedder", embedder, base.settings.embedder),
        ("--max-tokens", max_tokens, base.settings.chunking.max_tokens),
    ):
        if wanted is not None and wanted != held:
            raise UserError(
                f"{folder} was made with {option} {held}, which cannot become {wanted}: all of its passages depend on "
                "it; leave the option out, or give another --kb"
            )
    return base


@contextmanager
def show_ingest_progress(console: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=30), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading the embedder", total=None)

        def update(summary: IngestSummary) -> None:
            added = summary.added
            words = f"{added.documents:,} documents, {added.chunks:,} new passages  {summary.current[-50:]}"
            bar.update(task, completed=summary.done, total=summary.total or None, description=words.replace("[", "("))

        yield update


def print_ingest_summary(console: Console, folder: Path, summary: IngestSummary) -> None:
    from rich.markup import escape

    added = summary.added
    rate = (added.added + added.replaced) / added.seconds if added.seconds else 0.0
    console.print(
        f"[bold]{escape(str(folder))}[/]: {added.added:,} new, {added.replaced:,} changed, {added.unchanged:,} "
        f"unchanged, {summary.removed:,} removed"
    )
    console.print(
        f"{added.chunks:,} new passages, {added.tokens:,} tokens, {added.seconds:.1f} s ({rate:.1f} documents/s)"
    )
    if added.empty:
        console.print(f"{added.empty:,} without text: stored, never found")
    if summary.renamed:
        console.print(f"{summary.renamed:,} with an id that another one has: stored as ID~2, ID~3 ...")
    for reason, num in sorted(summary.left_out.items(), key=lambda item: (-item[1], item[0])):
        console.print(f"left out: {num:,} x {escape(reason)}", style="dim")
    for line in summary.refusals.lines():
        console.print(f"[yellow]refused[/]: {escape(line)}")
    if summary.kept:
        console.print(f"[yellow]nothing was removed[/]: not everything could be looked at ({escape(summary.kept)})")


def list_summary_lines(summary: IngestSummary) -> dict[str, object]:
    added = summary.added
    return {
        "documents": added.documents,
        "new": added.added,
        "changed": added.replaced,
        "unchanged": added.unchanged,
        "removed": summary.removed,
        "renamed": summary.renamed,
        "empty": added.empty,
        "passages": added.chunks,
        "tokens": added.tokens,
        "seconds": round(added.seconds, 3),
        "refused": dict(summary.refusals.by_number()),
        "left_out": dict(summary.left_out),
        "not_removed_because": summary.kept,
    }
