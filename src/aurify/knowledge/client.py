"""Asks a retriever over HTTP, ours or another's, in the protocol that `serving/knowledge.py` describes. Needs httpx
(extra `serve`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aurify.bounds import Checked, NonNegativeInt, PositiveFloat, PositiveInt
from aurify.errors import UserError
from aurify.files import require
from aurify.http import post_with_retries

if TYPE_CHECKING:
    import httpx


class RetrieverError(RuntimeError):
    """No answer, or none that can be understood."""


@dataclass(frozen=True, slots=True)
class Passage:
    id: str
    title: str
    text: str
    score: float | None = None  # None: the retriever gave none


@dataclass(frozen=True)
class RetrieverOptions(Checked):
    url: str = "http://127.0.0.1:8765/retrieve"
    topk: PositiveInt | None = None  # None: the retriever's own
    seconds: PositiveFloat = 30.0  # for each attempt
    retries: NonNegativeInt = 3
    max_queries: PositiveInt = 128  # of one request; more are sent in several

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"retriever: url is {self.url!r}; expected something like http://127.0.0.1:8765/retrieve")


class RetrieverClient:
    """`async with RetrieverClient(options) as client: await client.retrieve(["..."])`"""

    def __init__(self, options: RetrieverOptions = RetrieverOptions()) -> None:
        self.options = options
        own = urlsplit(options.url).hostname in ("127.0.0.1", "localhost", "::1")  # never by way of a proxy
        client = require("httpx", "serve", "to ask a retriever").AsyncClient
        self._client: httpx.AsyncClient = client(timeout=options.seconds, trust_env=not own)

    async def __aenter__(self) -> RetrieverClient:
        return self

    async def __aexit__(self, *problem: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.aclose()

    async def retrieve(self, queries: Sequence[str], topk: int | None = None) -> list[list[Passage]]:
        """The passages for each query, best first. Raises RetrieverError when the last attempt has failed."""
        size = self.options.max_queries
        found: list[list[Passage]] = []
        for start in range(0, len(queries), size):
            found += await self._ask(list(queries[start : start + size]), topk or self.options.topk)
        return found

    async def _ask(self, queries: list[str], topk: int | None) -> list[list[Passage]]:
        body = {"queries": queries, "topk": topk, "return_scores": True}
        url, retries = self.options.url, self.options.retries

        def read(response: httpx.Response) -> list[list[Passage]]:
            try:
                return read_passages(response.json(), len(queries))
            except (ValueError, RecursionError) as error:
                raise RetrieverError(f"{url} does not speak the retriever protocol: {error}") from error

        return await post_with_retries(
            self._client, url, body, read, retries=retries, max_pause=10.0, error=RetrieverError
        )


def read_passages(answer: Any, num_queries: int) -> list[list[Passage]]:
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, list) or not all(isinstance(entries, list) for entries in result):
        raise ValueError(f"no list 'result' of lists in {str(answer)[:200]}")
    if len(result) != num_queries:
        raise ValueError(f"{len(result)} lists for {num_queries} queries")
    return [[read_passage(entry) for entry in entries] for entries in result]


def read_passage(entry: Any) -> Passage:
    """From {document, score} or from a document alone. Without a `title`, the first line of `contents` is the title."""
    document = entry.get("document", entry) if isinstance(entry, dict) else None
    if not isinstance(document, dict) or not ("contents" in document or "text" in document):
        raise ValueError(f"no document with contents or text in {str(entry)[:200]}")
    contents = str(document.get("contents", ""))
    first, _, rest = contents.partition("\n") if "\n" in contents else ("", "", contents)
    score = entry.get("score")
    return Passage(
        id=str(document.get("id", "")),
        title=str(document.get("title", first.strip().strip('"'))),
        text=str(document.get("text", rest)),
        score=float(score) if isinstance(score, int | float) else None,
    )
