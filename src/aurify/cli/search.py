"""`aurify search`: the passages of a knowledge base that answer a question."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from aurify.cli.names import find_kb
from aurify.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from aurify.knowledge.types import Hit, Value

CONDITION = re.compile(r"([^=<>!]+?)\s*(!=|<=|>=|=|<|>)\s*(.*)", re.DOTALL)
STAGES = ("dense", "bm25", "fused", "reranked")
SHOWN = 600  # characters of a passage


def search(
    query: Annotated[str, typer.Argument(help="What you want to know.")],
    kb: Annotated[str, typer.Option(help="A name under kb/, or a folder with a slash.")],
    num: Annotated[int, typer.Option("--num", "-n", help="How many hits.")] = 5,
    mode: Annotated[str | None, typer.Option(help="dense, bm25 or hybrid; otherwise what the base remembers.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only documents with this metadata: topic=heart, 'year>=2020'. Repeat it to add another."),
    ] = None,
    rerank: Annotated[str | None, typer.Option(help="Second stage: cross-encoder:MODEL or maxsim:MODEL.")] = None,
    all_passages: Annotated[
        bool, typer.Option("--all-passages", help="Several passages of one document, too.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show scores, ranks and times of each stage.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a hit and line.")] = False,
) -> None:
    """Find the passages of a knowledge base that answer a question."""
    from typing import cast

    from rich.console import Console

    from aurify.knowledge.knowledge_base import KnowledgeBase
    from aurify.knowledge.rerank import load_reranker
    from aurify.knowledge.types import Mode

    base = KnowledgeBase.open(find_kb(kb))
    times: dict[str, float] = {}
    hits = base.search(
        query,
        num,
        cast("Mode | None", mode),
        conditions(where or []),
        load_reranker(rerank),
        per_document=not all_passages,
        times=times,
    )
    if as_json:
        for hit in hits:
            typer.echo(as_line(hit))
        return
    console = Console(highlight=False)
    if not hits:
        held = base.store.num_chunks()
        console.print(f"nothing found among {held:,} passages" if held else "the knowledge base is empty")
    for rank, hit in enumerate(hits, 1):
        show(console, rank, hit)
    if explain:
        show_stages(console, hits, times)


def conditions(given: list[str]) -> dict[str, dict[str, Value] | list[Value]]:
    """Equalities with one key mean any of them; other comparisons must all hold."""
    found: dict[str, dict[str, Value] | list[Value]] = {}
    for text in given:
        match = CONDITION.fullmatch(text.strip())
        if match is None:
            raise UserError(f"--where {text!r}: expected KEY=VALUE, or another of != < <= > >= in between")
        key, sign, value = match.groups()
        held = found.setdefault(key, [] if sign == "=" else {})
        if isinstance(held, list) != (sign == "="):
            raise UserError(f"--where {text!r}: {key} is asked to be equal to something, and compared as well")
        if isinstance(held, list):
            held.append(value_of(value))
        elif sign in held:
            raise UserError(f"--where {text!r}: {key} has one {sign} already")
        else:
            held[sign] = value_of(value)
    return found


def value_of(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def show(console: Console, rank: int, hit: Hit) -> None:
    from rich.markup import escape

    chunk = hit.chunk
    lines = f"{chunk.first_line}-{chunk.last_line}" if chunk.last_line > chunk.first_line else str(chunk.first_line)
    console.print(f"[bold]{rank}. {escape(chunk.document)}[/]:{lines}  [dim]{hit.score:.4f}[/]", soft_wrap=True)
    above = [part for part in (chunk.title, *chunk.breadcrumb) if part and part != chunk.document]
    if above:
        console.print(" > ".join(dict.fromkeys(above)), style="cyan", markup=False, soft_wrap=True)
    text = chunk.text.strip()
    console.print(text[:SHOWN] + (" ..." if len(text) > SHOWN else ""), markup=False, soft_wrap=True)
    console.print()


def show_stages(console: Console, hits: list[Hit], times: dict[str, float]) -> None:
    from rich.table import Table

    stages = [stage for stage in STAGES if any(stage in hit.scores for hit in hits)]
    table = Table("", "passage", *(f"{stage} (rank)" for stage in stages), box=None, header_style="bold")
    for rank, hit in enumerate(hits, 1):
        parts = ((hit.scores.get(stage), hit.ranks.get(stage, "-")) for stage in stages)
        cells = ["-" if score is None else f"{score:.4f} ({place})" for score, place in parts]
        table.add_row(str(rank), hit.chunk.id, *cells)
    console.print(table)
    told = ", ".join(f"{stage} {1000 * seconds:.1f} ms" for stage, seconds in times.items() if seconds >= 5e-5)
    both = "; words are looked up while the question is embedded" if {"embed", "bm25"} <= times.keys() else ""
    console.print(told + both, style="dim", soft_wrap=True)


def as_line(hit: Hit) -> str:
    import json
    from dataclasses import asdict

    values = asdict(hit)
    chunk = values.pop("chunk")
    kept = ("document", "title", "breadcrumb", "kind", "first_line", "last_line", "text")
    return json.dumps({**{name: chunk[name] for name in kept}, **values}, ensure_ascii=False)
