"""Search in a knowledge base, or with a retriever elsewhere that speaks Search-R1's protocol."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aurify.errors import UserError
from aurify.tools.tool import CallError


@dataclass(frozen=True, slots=True)
class Passage:
    title: str
    text: str
    document: str = ""


Retrieve = Callable[[str, int], Awaitable[list[Passage]]]
NOTHING = "Nothing was found."


class Search:
    """Search a knowledge base, or ask a retriever over HTTP. kb: folder of a knowledge base. url: of a retriever,
    instead. topk: passages of a result."""

    shared = True  # one for the run: a knowledge base loads an embedder

    def __init__(self, kb: str | None = None, url: str | None = None, topk: int = 3) -> None:
        if (kb is None) == (url is None):
            raise UserError("search: give either kb (the folder of a knowledge base) or url (of a retriever)")
        if topk < 1:
            raise UserError(f"search: topk is {topk}; it must be at least 1")
        self.topk = topk
        self.retrieve = open_kb_tool(kb) if kb is not None else open_service_tool(str(url))

    async def call(self, query: str) -> str:
        """Search for passages that answer a question.

        Args:
            query: what to look for, in words
        """
        return write_tool_passages(await self.find(query))

    async def find(self, query: str) -> list[Passage]:
        if not query.strip():
            raise CallError("the query is empty; give the words to look for")
        return await self.retrieve(query.strip(), self.topk)


def write_tool_passages(passages: list[Passage]) -> str:
    """One line a passage, as Search-R1 writes them."""
    lines = [f"Doc {rank}(Title: {p.title}) {' '.join(p.text.split())}" for rank, p in enumerate(passages, 1)]
    return "\n".join(lines) or NOTHING


def open_kb_tool(folder: str) -> Retrieve:
    """Searches run one at a time, in a thread: the embedder is one model."""
    from aurify.knowledge.knowledge_base import KnowledgeBase

    base, lock = KnowledgeBase.open(folder), threading.Lock()

    def search(query: str, topk: int) -> list[Passage]:
        with lock:
            hits = base.search(query, topk)
        return [Passage(hit.chunk.title or hit.chunk.document, hit.chunk.text, hit.chunk.document) for hit in hits]

    async def retrieve(query: str, topk: int) -> list[Passage]:
        return await asyncio.to_thread(search, query, topk)

    return retrieve


def open_service_tool(url: str) -> Retrieve:
    from aurify.knowledge.client import RetrieverClient, RetrieverOptions

    options = RetrieverOptions(url)

    async def retrieve(query: str, topk: int) -> list[Passage]:
        async with RetrieverClient(options) as retriever:  # of this event loop: each trajectory has its own
            [found] = await retriever.retrieve([query], topk)
        return [Passage(passage.title, passage.text, passage.id) for passage in found]

    return retrieve
