"""A folder, a file or the web into a knowledge base, and again when it has changed.

    summary = ingest(kb, "notes/", IngestOptions(prune=True))

Documents are named by their path below the folder, by the id of their row or by their URL, so that a second reading
finds what it knows: unchanged ones are left alone, changed ones replaced, vanished ones removed with `prune`. All of
this is idempotent, so that after an interruption it is enough to start again.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from aurify.errors import UserError
from aurify.knowledge.knowledge_base import AddSummary, KnowledgeBase, kb_exists
from aurify.knowledge.reading.fetch import WebOptions
from aurify.knowledge.reading.files import read_documents
from aurify.knowledge.reading.refusals import Refusals, clean_document_text, to_refusal_line
from aurify.knowledge.reading.rows import ReadOptions
from aurify.knowledge.reading.web import is_url, read_urls
from aurify.knowledge.reading.webpage import parse_sitemap
from aurify.knowledge.types import Document

TOOL_FOLDERS = ("node_modules", "__pycache__", "site-packages", "venv")
HEAD, MAX_LIST = 4096, 10_000_000  # bytes of a file that may be a list of URLs
LINK = "link that leads nowhere or out of the folder"
SPECIAL = "neither file nor folder"
OTHER_SOURCE = "another source already has a document of this name (give this one a prefix)"


@dataclass(frozen=True)
class IngestOptions:
    """`include` and `exclude` are patterns of paths below the folder: "*.md", "docs/*"."""

    read: ReadOptions = field(default_factory=ReadOptions)
    web: WebOptions = field(default_factory=WebOptions)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    hidden: bool = False  # also files and folders whose names begin with a dot
    prefix: str = ""  # before every id: tells two folders with equal paths apart
    prune: bool = False


@dataclass
class IngestSummary:
    added: AddSummary = field(default_factory=AddSummary)
    removed: int = 0
    renamed: int = 0  # documents with an id that another one has already: ID~2, ID~3
    refusals: Refusals = field(default_factory=Refusals)
    left_out: Counter[str] = field(default_factory=Counter)  # by rule, not looked at: reason -> files or folders
    kept: str = ""  # why nothing was pruned although it was asked for
    done: int = 0  # bytes of files, or pages, read so far
    total: int = 0  # 0: not known
    current: str = ""  # the file or page that is being read


Progress = Callable[[IngestSummary], None]


def ingest(
    kb: KnowledgeBase,
    location: str,
    options: IngestOptions | None = None,
    *,
    progress: Progress = lambda summary: None,
) -> IngestSummary:
    """`location` is a folder, a file, a URL or a file that lists URLs. `progress` is called now and then."""
    check_ingest_location(location)
    options, summary = options or IngestOptions(), IngestSummary()
    source = location if is_url(location) else str(Path(location).expanduser().resolve())
    sources = {record.id: record.source for record in kb.records()}
    seen: dict[str, list[str]] = {}  # id -> digests of the documents that go by it

    def choose(documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            document = replace(document, id=options.prefix + document.id, source=source)
            if document.digest in (digests := seen.setdefault(document.id, [])):
                summary.refusals.add(document.id, "copy of a document of the same id")
                continue
            digests.append(document.digest)
            if len(digests) > 1:
                document = rename_double_document(document, len(digests), seen)
                summary.renamed += 1
            if is_document_taken(sources.get(document.id, source), source):
                summary.refusals.add(document.id, OTHER_SOURCE)
                continue
            yield document
            progress(summary)

    def count(added: AddSummary) -> None:
        summary.added = added
        progress(summary)

    summary.added = kb.add(choose(read_ingest_location(location, kb.folder, options, summary)), progress=count)
    for reason, num in summary.added.refused.items():
        summary.refusals.counts[reason] += num
        summary.refusals.first.setdefault(reason, location)
    if options.prune:
        summary.kept = summary.refusals.incomplete
        if not summary.kept:
            summary.removed = kb.remove(id for id, other in sources.items() if other == source and id not in seen)
    return summary


def rename_double_document(document: Document, number: int, seen: dict[str, list[str]]) -> Document:
    """Data sets give different rows the same id; each gets a name of its own."""
    while (name := f"{document.id}~{number}") in seen:
        number += 1
    seen[name] = [document.digest]
    return replace(document, id=name)


def is_document_taken(other: str, source: str) -> bool:
    """Whether the name belongs to a document of another source. A source that no longer exists has moved here."""
    return other != source and (is_url(other) or Path(other).exists())


def check_ingest_location(location: str) -> None:
    path = Path(location).expanduser()
    if not is_url(location) and not path.is_file() and not path.is_dir():
        raise UserError(f"{location}: there is no such file or folder; expected one of them, or http(s)://...")


def read_ingest_location(
    location: str, kb_folder: Path, options: IngestOptions, summary: IngestSummary
) -> Iterator[Document]:
    path = Path(location).expanduser()
    if urls := [location] if is_url(location) else list_ingest_urls(path) if path.is_file() else []:

        def count(url: str, num_read: int, num_known: int) -> None:
            summary.current, summary.done, summary.total = to_refusal_line(url), num_read, num_known

        yield from read_urls(urls, options.web, options.read, summary.refusals, count)
        return
    own_ids = path.is_file()  # the rows of a file in a folder are named after the file as well
    files = (
        [(clean_document_text(path.name), path)]
        if own_ids
        else sorted(walk_document_folder(path, kb_folder, options, summary))
    )
    sizes = [file.stat().st_size for _, file in files]
    summary.total = sum(sizes)
    for (id, file), size in zip(files, sizes, strict=True):
        summary.current = id
        yield from read_documents(file, id, options.read, summary.refusals, own_ids=own_ids)
        summary.done += size


def list_ingest_urls(path: Path) -> list[str]:
    """The URLs of a sitemap, and those in a file that holds nothing else but blank lines and comments (#)."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        is_sitemap = parse_sitemap(head) is not None
        if not is_sitemap and not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"http", b"#")):
            return []
        content = head + file.read(MAX_LIST)
    if is_sitemap:
        return parse_sitemap(content) or []
    lines = [line.strip() for line in content.decode("utf-8-sig", "replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return lines if all(is_url(line) and not line.split()[1:] for line in lines) else []


def walk_document_folder(
    root: Path, kb_folder: Path, options: IngestOptions, summary: IngestSummary
) -> Iterator[tuple[str, Path]]:
    """(id, path) of plain files within the folder. No link leads out of it, and no knowledge base is read into
    itself."""

    def refuse(error: OSError) -> None:
        summary.refusals.add(str(error.filename), f"cannot be opened: {error.strerror or error}", transient=True)

    for folder, folders, names in os.walk(root, onerror=refuse):
        for name in list(folders):
            if reason := reason_to_skip_folder(Path(folder) / name, kb_folder, options):
                folders.remove(name)
                summary.left_out[reason] += 1
        for name in names:
            file = Path(folder) / name
            relative = file.relative_to(root).as_posix()
            # A file name need not be text; its other bytes become \udc.. escapes, which can be stored and read back
            id = clean_document_text(relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
            reason = reason_to_skip_file(file, relative, root, options)
            if not reason:
                yield id, file
            elif reason in (LINK, SPECIAL):
                summary.refusals.add(id, reason)
            else:
                summary.left_out[reason] += 1


def reason_to_skip_folder(folder: Path, kb_folder: Path, options: IngestOptions) -> str:
    if folder.is_symlink():
        return "folder behind a link"
    if folder.name.startswith(".") and not options.hidden:
        return "hidden folder (--hidden reads it)"
    if folder.name in TOOL_FOLDERS or folder.name.endswith((".egg-info", ".dist-info")):
        return "folder of installed or compiled code"
    if folder.resolve() == kb_folder.resolve() or (kb_exists(folder) and (folder / "documents.lance").is_dir()):
        return "knowledge base"
    return ""


def reason_to_skip_file(file: Path, relative: str, root: Path, options: IngestOptions) -> str:
    if file.name.startswith(".") and not options.hidden:
        return "hidden file (--hidden reads it)"
    if options.include and not any(fnmatch.fnmatch(relative, pattern) for pattern in options.include):
        return "file that --include does not name"
    if any(fnmatch.fnmatch(relative, pattern) for pattern in options.exclude):
        return "file that --exclude names"
    if file.is_symlink() and not (file.is_file() and file.resolve().is_relative_to(root.resolve())):
        return LINK
    return "" if stat.S_ISREG(file.stat().st_mode) else SPECIAL
