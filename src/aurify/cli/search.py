"""`aurify search`: the passages of a knowledge base that answer a question."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated

import typer

from aurify.cli.kb import AllPassages, Mode, Rerank
from aurify.cli.names import resolve_kb_argument
from aurify.config import did_you_mean
from aurify.errors import UserError

if TYPE_CHECKING:
    from collections import Counter

    from rich.console import Console

    from aurify.knowledge.knowledge_base import KnowledgeBase
    from aurify.knowledge.types import Hit, Value

    Conditions = dict[str, dict[str, Value] | list[Value]]

CONDITION = re.compile(r"([^=<>!]+?)\s*(!=|<=|>=|=|<|>)\s*(.*)", re.DOTALL)
STAGES = ("dense", "bm25", "fused", "reranked")
MAX_CHARS = 600  # of a passage that is shown
MAX_VALUES = 10  # of a metadata key that are named where none of them matched


def search(
    query: Annotated[str, typer.Argument(help="What you want to know.")],
    kb: Annotated[str, typer.Option(help="A name under kb/, or a folder with a slash.")],
    num: Annotated[int, typer.Option("--num", "-n", help="How many hits.")] = 5,
    mode: Mode = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only documents with this metadata: topic=heart, 'year>=2020'. Repeat it to add another."),
    ] = None,
    rerank: Rerank = None,
    all_passages: AllPassages = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show scores, ranks and times of each stage.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a hit and line.")] = False,
) -> None:
    """Find the passages of a knowledge base that answer a question."""
    from rich.console import Console

    from aurify.knowledge.knowledge_base import KnowledgeBase
    from aurify.knowledge.rerank import load_reranker

    if not query.strip():
        raise UserError(f"the question is empty; write it in quotes: aurify search 'how is it stored?' --kb {kb}")
    base = KnowledgeBase.open(resolve_kb_argument(kb))
    wanted = parse_where_flags(where or [])
    times: dict[str, float] = {}
    with Console(stderr=True).status("searching ..."):  # most of it loads the embedder
        hits = base.search(
            query,
            num,
            mode,  # type: ignore[arg-type]  # checked there
            where=wanted,
            rerank=load_reranker(rerank),
            per_document=not all_passages,
            times=times,
        )
    if not hits:
        typer.echo(explain_no_hits(base, wanted), err=as_json)
    if as_json:
        for hit in hits:
            typer.echo(hit_to_json(hit))
        return
    console = Console(highlight=False)
    for rank, hit in enumerate(hits, 1):
        print_hit(console, rank, hit)
    if explain:
        print_search_stages(console, hits, times)


def parse_where_flags(texts: list[str]) -> Conditions:
    """Equalities with one key mean any of them; other comparisons must all hold."""
    found: Conditions = {}
    for text in texts:
        match = CONDITION.fullmatch(text.strip())
        if match is None:
            raise UserError(f"--where {text!r}: expected KEY=VALUE, or another of != < <= > >= in between")
        key, sign, value = match.groups()
        held = found.setdefault(key, [] if sign == "=" else {})
        if isinstance(held, list) != (sign == "="):
            raise UserError(f"--where {text!r}: {key} is asked to be equal to something, and compared as well")
        if isinstance(held, list):
            held.append(parse_flag_value(value))
        elif sign in held:
            raise UserError(f"--where {text!r}: {key} has one {sign} already")
        else:
            held[sign] = parse_flag_value(value)
    return found


def parse_flag_value(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def explain_no_hits(base: KnowledgeBase, wanted: Conditions) -> str:
    """Why there are no hits: where a condition matches nothing, the keys or the values that it could have asked for."""
    snapshot = base.store.snapshot()
    if snapshot is None or not len(snapshot):
        return "the knowledge base is empty"
    lines = [f"nothing found among {len(snapshot):,} passages"]
    counts = snapshot.count_values() if wanted else {}
    for key, condition in wanted.items():
        matching = snapshot.find_matching({key: condition})
        if matching is not None and len(matching):
            continue
        near = next((name for name in (f"document.{key}", f"chunk.{key}") if name in counts), None)
        if key in counts:
            lines.append(f"--where: {key} is {join_known_values(counts[key])}")
        elif near:
            values = join_known_values(counts[near])
            lines.append(f"--where: no metadata is called {key!r}; did you mean {near!r}? It is {values}")
        else:
            lines.append(f"--where: no metadata is called {key!r}{did_you_mean(key, counts)}")
    return "\n".join(lines)


def join_known_values(counts: Counter[Value]) -> str:
    shown = ", ".join(f"{value} ({num:,} passages)" for value, num in counts.most_common(MAX_VALUES))
    return shown + (f" and {len(counts) - MAX_VALUES:,} more" if len(counts) > MAX_VALUES else "")


def print_hit(console: Console, rank: int, hit: Hit) -> None:
    from rich.markup import escape

    chunk = hit.chunk
    lines = f"{chunk.first_line}-{chunk.last_line}" if chunk.last_line > chunk.first_line else str(chunk.first_line)
    console.print(f"[bold]{rank}. {escape(chunk.document)}[/]:{lines}  [dim]{hit.score:.4f}[/]", soft_wrap=True)
    above = [part for part in (chunk.title, *chunk.breadcrumb) if part and part != chunk.document]
    if above:
        console.print(" > ".join(dict.fromkeys(above)), style="cyan", markup=False, soft_wrap=True)
    text = chunk.text.strip()
    console.print(text[:MAX_CHARS] + (" ..." if len(text) > MAX_CHARS else ""), markup=False, soft_wrap=True)
    console.print()


def print_search_stages(console: Console, hits: list[Hit], times: dict[str, float]) -> None:
    from rich.table import Table

    stages = [stage for stage in STAGES if any(stage in hit.scores for hit in hits)]
    table = Table("", "passage", *(f"{stage} (rank)" for stage in stages), box=None, header_style="bold")
    for rank, hit in enumerate(hits, 1):
        cells = [f"{hit.scores[stage]:.4f} ({hit.ranks[stage]})" if stage in hit.scores else "-" for stage in stages]
        table.add_row(str(rank), hit.chunk.id, *cells)
    console.print(table)
    told = ", ".join(f"{stage} {1000 * seconds:.1f} ms" for stage, seconds in times.items() if seconds >= 5e-5)
    both = "; words are looked up while the question is embedded" if {"embed", "bm25"} <= times.keys() else ""
    console.print(told + both, style="dim", soft_wrap=True)


def hit_to_json(hit: Hit) -> str:
    names = ("document", "title", "breadcrumb", "kind", "first_line", "last_line", "text")
    values = {name: getattr(hit.chunk, name) for name in names}
    for name in ("score", "metadata", "scores", "ranks"):
        values[name] = getattr(hit, name)
    return json.dumps(values, ensure_ascii=False)
