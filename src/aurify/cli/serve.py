"""`aurify kb serve`: a knowledge base over HTTP, in the retriever protocol of Search-R1."""

from __future__ import annotations

from typing import Annotated

import typer

from aurify.cli.names import find_kb


def serve(
    kb: Annotated[str, typer.Argument(help="A name under kb/, or a folder with a slash.")],
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 lets everybody in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any free one.")] = 8765,
    topk: Annotated[int, typer.Option(help="Passages a query, for requests that leave it open.")] = 3,
    mode: Annotated[
        str | None, typer.Option(help="dense, bm25 or hybrid.", show_default="the knowledge base's own")
    ] = None,
    rerank: Annotated[
        str | None, typer.Option(help="A second stage: cross-encoder:MODEL or maxsim:MODEL.", show_default="none")
    ] = None,
) -> None:
    """Answer POST /retrieve from a knowledge base, until Ctrl-C."""
    from dataclasses import replace

    from aurify.knowledge.knowledge_base import KnowledgeBase
    from aurify.knowledge.rerank import load_reranker
    from aurify.knowledge.types import Hit
    from aurify.serving.knowledge import ServiceOptions, serve

    options = ServiceOptions(host=host, port=port, topk=topk)
    folder = find_kb(kb)
    base = KnowledgeBase.open(folder)
    search = base.settings.search
    if mode:
        search = replace(search, mode=mode)  # type: ignore[arg-type]  # checked there
    second = load_reranker(rerank)

    def answers(queries: list[str], limit: int) -> list[list[Hit]]:
        """One hit a document is for people; passages are what a model asks for."""
        return base.search_many(queries, limit, rerank=second, per_document=False, options=search)

    answers(["warm up"], 1)  # loads the models: the first request should not wait for them
    if not options.local:
        typer.secho(
            f"{host} is open to everybody who can reach this machine, without a password: they can read {folder}.",
            fg=typer.colors.YELLOW,
            err=True,
        )

    def ready(url: str) -> None:
        typer.echo(f"{folder}: POST {url} answers. Ctrl-C ends.")

    serve(answers, options, {"kb": folder.name}, ready)
