"""A knowledge base: a folder that documents are put into and passages are found in.

    from aurify.knowledge.knowledge_base import KnowledgeBase
    kb = KnowledgeBase.create("kb/notes")
    kb.add([Document("heart.md", "The heart has four chambers. ...", format="markdown")])
    for hit in kb.search("how many chambers does the heart have?"):
        print(hit.score, hit.chunk.document, hit.chunk.text)

One process writes at a time, any number read meanwhile. What a killed writer had not finished is done again by the next
one: no document is lost, none is there twice.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from aurify import config
from aurify.errors import UserError
from aurify.files import replace_text
from aurify.knowledge.chunking.chunk import ChunkOptions, chunk_document
from aurify.knowledge.embedding import MINILM, load_embedder
from aurify.knowledge.search import SearchOptions, Times, search
from aurify.knowledge.store import LANGUAGES, NO_LANGUAGE, ChunkRow, LanceStore, Record
from aurify.knowledge.types import Chunk, Document, Embedder, Hit, Mode, Reranker, Where

SETTINGS, LOCK = "settings.json", "writer.lock"
CHUNKS_AT_ONCE = 256  # embedded and committed together: at most this much is done again after a kill
COMMITS_BETWEEN_TIDYING = 50  # each commit leaves a file, and many files are slow to read
SECONDS_FOR_THE_LOCK = 10.0


@dataclass(frozen=True)
class Settings:
    """What a knowledge base must not forget: settings.json in its folder."""

    embedder: str = MINILM
    language: str = "English"  # whose word endings BM25 ignores; "none" takes words as they are written
    chunking: ChunkOptions = field(default_factory=ChunkOptions)
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        known = (*LANGUAGES, NO_LANGUAGE)
        if self.language not in known:
            raise UserError(
                f"language is {self.language!r}; expected one of {', '.join(known)}"
                f"{config.did_you_mean(self.language, known)}"
            )


@dataclass
class AddSummary:
    """How many documents were added, replaced, ... `empty` ones are stored without chunks, so that they are not read
    again; of `repeated` ids the first counts; `refused` ones are not stored, by reason."""

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    empty: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    tokens: int = 0  # of the passages' texts and contexts, without titles
    seconds: float = 0.0

    @property
    def documents(self) -> int:
        return self.added + self.replaced + self.unchanged


class KnowledgeBase:
    def __init__(self, folder: Path, settings: Settings, embedder: Embedder | None = None) -> None:
        self.folder = folder
        self.settings = settings
        self.store = LanceStore(folder, settings.language)
        self._embedder = embedder
        self._dim: int | None = None  # of the stored vectors, once there are any

    @classmethod
    def create(
        cls,
        folder: str | Path,
        embedder: str | Embedder = MINILM,
        chunking: ChunkOptions | None = None,
        language: str = "English",
    ) -> KnowledgeBase:
        """A new one. An embedder whose name `load_embedder` does not know must be given to `open` again."""
        folder = Path(folder)
        if kb_exists(folder):
            raise UserError(f"{folder} already is a knowledge base; open it, or remove the folder to begin anew")
        name = embedder if isinstance(embedder, str) else embedder.name
        if Path(name).expanduser().is_dir():
            name = str(Path(name).expanduser().resolve())
        settings = Settings(name, language, chunking or ChunkOptions())
        write_kb_settings(folder, settings)
        return cls(folder, settings, None if isinstance(embedder, str) else embedder)

    @classmethod
    def open(cls, folder: str | Path, embedder: Embedder | None = None) -> KnowledgeBase:
        folder = Path(folder)
        if not kb_exists(folder):
            raise UserError(f"there is no knowledge base at {folder}; `aurify ingest PATH --kb NAME` makes one")
        return cls(folder, read_kb_settings(folder), embedder)

    @property
    def embedder(self) -> Embedder:
        """Loaded when it is first needed: words are found without it."""
        if self._embedder is None:
            self._embedder = load_embedder(self.settings.embedder)
        if self._dim is None:
            self._dim = self.store.dim()
        if self._dim not in (None, self._embedder.dim):
            raise UserError(
                f"{self.folder}: its vectors have {self._dim} numbers, those of embedder {self._embedder.name!r} have "
                f"{self._embedder.dim}; the embedder must be the one that the knowledge base was made with"
            )
        return self._embedder

    # Reading

    def search(self, query: str, limit: int = 10, mode: Mode | None = None, **options: Any) -> list[Hit]:
        """Best first, one hit a document unless told otherwise. Takes what `search_many` takes."""
        return self.search_many([query], limit, mode, **options)[0]

    def search_many(
        self,
        queries: Sequence[str],
        limit: int = 10,
        mode: Mode | None = None,
        where: Where | None = None,
        rerank: Reranker | None = None,
        per_document: bool = True,
        options: SearchOptions | None = None,
        times: Times | None = None,
    ) -> list[list[Hit]]:
        """The hits of each query; a blank one has none. All queries are embedded together. `options` are by default
        those of the settings; `times` receives the seconds of each stage."""
        if limit < 1:
            raise UserError(f"search: limit is {limit}; expected 1 or more")
        options = options or self.settings.search
        options = replace(options, mode=mode) if mode else options
        snapshot = self.store.snapshot()
        asked = [query for query in queries if query.strip()]
        if snapshot is None or not len(snapshot) or not asked:
            return [[] for _ in queries]
        found = search(
            snapshot,
            lambda: self.embedder,
            asked,
            options,
            limit=limit,
            where=where,
            rerank=rerank,
            per_document=per_document,
            times=times,
        )
        hits = iter(found)
        return [next(hits) if query.strip() else [] for query in queries]

    def digests(self, source: str | None = None) -> dict[str, str]:
        """id -> digest of what is stored, all or what came from one source."""
        return self.store.digests(source)

    def records(self) -> list[Record]:
        return sorted(self.store.records(), key=lambda record: record.id)

    # Writing

    def add(self, documents: Iterable[Document], *, progress: Callable[[AddSummary], None] | None = None) -> AddSummary:
        """Reads documents as they come. Those that are stored with the same digest are left alone, others are stored
        or replaced. `progress` gets the counts after every commit."""
        summary, start = AddSummary(), time.monotonic()
        with self._writing():
            known = self.store.digests()
            self.store.sweep(known.keys())
            for number, batch in enumerate(self._cut(documents, known, summary), 1):
                self._commit(batch, known, summary)
                summary.seconds = time.monotonic() - start
                if progress is not None:
                    progress(summary)
                if number % COMMITS_BETWEEN_TIDYING == 0:
                    self.store.tidy()
            self.store.tidy()  # even if nothing changed: the last writer may have been killed just before it
        summary.seconds = time.monotonic() - start
        if progress is not None:
            progress(summary)
        return summary

    def remove(self, ids: Iterable[str]) -> int:
        """How many of them were there."""
        with self._writing():
            known = self.store.digests().keys()
            stored = sorted(known & set(ids))
            self.store.remove(stored)
            self.store.sweep(known - set(stored))
            self.store.tidy()
        return len(stored)

    def remember(self, search: SearchOptions) -> None:
        """From now on, searches go by these options."""
        self.settings = replace(self.settings, search=search)
        write_kb_settings(self.folder, self.settings)

    def _cut(
        self, documents: Iterable[Document], known: dict[str, str], summary: AddSummary
    ) -> Iterator[list[tuple[Document, list[Chunk]]]]:
        """New and changed documents with their chunks, as many together as go into one commit."""
        seen = set[str]()
        options: ChunkOptions | None = None  # the first document that is cut loads the embedder
        batch: list[tuple[Document, list[Chunk]]] = []
        for document in documents:
            if (fault := find_document_fault(document)) is not None:
                summary.refused[fault] += 1
            elif document.id in seen:
                summary.repeated += 1
            elif known.get(document.id) == document.digest:
                summary.unchanged += 1
            else:
                options = options or self._chunk_options()
                batch.append((document, chunk_document(document, options, self.embedder.count_tokens)))
            seen.add(document.id)
            if sum(max(1, len(chunks)) for _, chunks in batch) >= CHUNKS_AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch

    def _chunk_options(self) -> ChunkOptions:
        """Chunks no longer than what the embedder sees of a text."""
        options = self.settings.chunking
        seen = min(options.max_tokens, self.embedder.max_tokens)
        return replace(
            options,
            max_tokens=seen,
            overlap=min(options.overlap, seen // 4),
            min_tokens=min(options.min_tokens, seen // 4),
        )

    def _commit(
        self, batch: Sequence[tuple[Document, list[Chunk]]], known: dict[str, str], summary: AddSummary
    ) -> None:
        passages = [chunk.to_embedding_text() for _, chunks in batch for chunk in chunks]
        vectors = iter(self.embedder.embed_documents(passages))
        rows: list[ChunkRow] = []
        records: list[Record] = []
        for document, chunks in batch:
            about = (document.id, document.digest, document.source, document.title, document.format)
            rows += [
                ChunkRow(chunk, next(vectors), document.source, document.format, document.metadata) for chunk in chunks
            ]
            records.append(Record(*about, len(chunks), sum(chunk.num_tokens for chunk in chunks)))
        num_known = sum(record.id in known for record in records)
        write = self.store.replace if num_known else self.store.add
        write(rows, records)
        summary.added += len(records) - num_known
        summary.replaced += num_known
        summary.empty += sum(not record.num_chunks for record in records)
        summary.chunks += len(rows)
        summary.tokens += sum(record.num_tokens for record in records)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=SECONDS_FOR_THE_LOCK)
        except Timeout:
            raise UserError(
                f"{self.folder} is being written to by another process; searching goes on meanwhile, but wait for it "
                "to finish before you write"
            ) from None
        try:
            yield
        finally:
            lock.release()


def find_document_fault(document: Document) -> str | None:
    """Why a document cannot be stored. Broken file names and escapes give texts that are not valid Unicode."""
    try:
        for text in (document.id, document.text, document.title, document.format, document.source):
            text.encode()
        json.dumps(dict(document.metadata), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "text that is no valid Unicode"
    except TypeError:
        return "metadata that is neither text, number nor boolean"
    if any(isinstance(value, float) and not math.isfinite(value) for value in document.metadata.values()):
        return "metadata with a number that is not finite"
    return None if document.id else "no id"


def kb_exists(folder: str | Path) -> bool:
    return (Path(folder) / SETTINGS).is_file()


def read_kb_settings(folder: Path) -> Settings:
    try:
        values = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / SETTINGS} is not JSON ({error}); mend it, or remove the folder") from None
    return config.build_options(Settings, values, str(folder / SETTINGS))


def write_kb_settings(folder: Path, settings: Settings) -> None:
    replace_text(folder / SETTINGS, json.dumps(asdict(settings), indent=2) + "\n")
