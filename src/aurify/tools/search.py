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
CUT = " ..."


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
        self.retrieve = from_knowledge_base(kb) if kb is not None else from_service(str(url))

    async def call(self, query: str) -> str:
        """Search for passages that answer a question.

        Args:
            query: what to look for, in words
        """
        return write_passages(await self.find(query))

    async def find(self, query: str) -> list[Passage]:
        if not query.strip():
            raise CallError("the query is empty; give the words to look for")
        return await self.retrieve(query.strip(), self.topk)


def write_passages(passages: list[Passage], max_chars: int | None = None) -> str:
    """One line a passage, as Search-R1 writes them. max_chars: of all lines together. Those that are longer than a fair
    share are cut, all to the same length, and end with a mark; Search-R1 cuts the last ones first."""
    lines = [f"Doc {rank}(Title: {p.title}) {' '.join(p.text.split())}" for rank, p in enumerate(passages, 1)]
    if max_chars is not None:
        longest = share_room([len(line) for line in lines], max_chars - len(lines) + 1)
        lines = [line if len(line) <= longest else cut_line(line, longest) for line in lines]
    return "\n".join(lines) or NOTHING


def share_room(lengths: list[int], room: int) -> int:
    """The largest length to which all can be cut to fit together: what short ones leave over goes to the long ones."""
    for num_left, length in zip(range(len(lengths), 0, -1), sorted(lengths), strict=True):
        if length * num_left > room:
            return max(0, room // num_left)
        room -= length
    return max(lengths, default=0)


def cut_line(line: str, length: int) -> str:
    return line[: max(0, length - len(CUT))].rstrip() + CUT[:length]


def from_knowledge_base(folder: str) -> Retrieve:
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


def from_service(url: str) -> Retrieve:
    from aurify.knowledge.client import RetrieverClient, RetrieverOptions

    options = RetrieverOptions(url)

    async def retrieve(query: str, topk: int) -> list[Passage]:
        async with RetrieverClient(options) as retriever:  # of this event loop: each trajectory has its own
            [found] = await retriever.retrieve([query], topk)
        return [Passage(passage.title, passage.text, passage.id) for passage in found]

    return retrieve
