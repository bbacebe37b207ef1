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
from aurify.knowledge.knowledge_base import AddSummary, KnowledgeBase, exists
from aurify.knowledge.reading.files import ReadOptions, read_file
from aurify.knowledge.reading.refusals import Refusals, clean, printable
from aurify.knowledge.reading.web import WebOptions, is_url, read_urls
from aurify.knowledge.reading.webpage import sitemap_urls
from aurify.knowledge.types import Document

OF_TOOLS = ("node_modules", "__pycache__", "site-packages", "venv")
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
    place: str = ""  # being read now


Progress = Callable[[IngestSummary], None]


@dataclass(frozen=True, slots=True)
class File:
    path: Path
    id: str
    size: int
    alone: bool  # not one of a folder: its rows go by their own ids


def ingest(
    kb: KnowledgeBase, place: str, options: IngestOptions | None = None, *, progress: Progress | None = None
) -> IngestSummary:
    """`place` is a folder, a file, a URL or a file that lists URLs. `progress` is called now and then."""
    check_place(place)
    options, summary = options or IngestOptions(), IngestSummary()
    source = place if is_url(place) else str(Path(place).expanduser().resolve())
    tell = progress or (lambda _: None)
    sources = {record.id: record.source for record in kb.records()}
    seen: dict[str, list[str]] = {}  # id -> digests of the documents that go by it

    def wanted(documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if document.digest in (digests := seen.setdefault(document.id, [])):
                summary.refusals.add(document.id, "copy of a document of the same id")
                continue
            digests.append(document.digest)
            if len(digests) > 1:
                document = apart(document, len(digests), seen)
                summary.renamed += 1
            if is_taken(sources.get(document.id, source), source):
                summary.refusals.add(document.id, OTHER_SOURCE)
                continue
            yield document
            tell(summary)

    def count(added: AddSummary) -> None:
        summary.added = added
        tell(summary)

    summary.added = kb.add(wanted(documents_of(place, source, kb.folder, options, summary)), progress=count)
    for reason, num in summary.added.refused.items():
        summary.refusals.counts[reason] += num
        summary.refusals.first.setdefault(reason, place)
    if options.prune:
        summary.kept = summary.refusals.incomplete
        if not summary.kept:
            summary.removed = kb.remove(id for id, of in sources.items() if of == source and id not in seen)
    return summary


def apart(document: Document, number: int, seen: dict[str, list[str]]) -> Document:
    """Under a name of its own: data sets give different rows the same id."""
    while (name := f"{document.id}~{number}") in seen:
        number += 1
    seen[name] = [document.digest]
    return replace(document, id=name)


def check_place(place: str) -> None:
    path = Path(place).expanduser()
    if not is_url(place) and not path.is_file() and not path.is_dir():
        raise UserError(f"{place}: there is no such file or folder; expected one of them, or http(s)://...")


def documents_of(
    place: str, source: str, kb_folder: Path, options: IngestOptions, summary: IngestSummary
) -> Iterator[Document]:
    if is_url(place):
        yield from pages_of([place], source, options, summary)
        return
    path = Path(place).expanduser()
    if path.is_file() and (urls := listed_urls(path)):
        yield from pages_of(urls, source, options, summary)
        return
    files = sorted(walk(path, kb_folder, options, summary), key=lambda file: file.id)
    summary.total = sum(file.size for file in files)
    for file in files:
        summary.place = file.id
        prefix = options.prefix if file.alone else None
        yield from read_file(
            file.path, options.prefix + file.id, options.read, summary.refusals, source=source, row_prefix=prefix
        )
        summary.done += file.size


def walk(path: Path, kb_folder: Path, options: IngestOptions, summary: IngestSummary) -> Iterator[File]:
    """Plain files within the folder. No link leads out of it, and no knowledge base is read into itself."""
    if path.is_file():
        yield File(path, clean(path.name), path.stat().st_size, alone=True)
        return
    root = path.resolve()

    def unreadable(error: OSError) -> None:
        summary.refusals.add(str(error.filename), f"cannot be opened: {error.strerror or error}", transient=True)

    for folder, folders, names in os.walk(path, onerror=unreadable):
        for name in list(folders):
            below = Path(folder) / name
            if (reason := why_not_enter(below, kb_folder, options)) is not None:
                folders.remove(name)
                summary.left_out[reason] += 1
        for name in names:
            file = Path(folder) / name
            relative = file.relative_to(path).as_posix()
            reason = why_not_read(file, relative, root, options)
            if reason is None:
                yield File(file, as_id(relative), file.stat().st_size, alone=False)
            elif reason in (LINK, SPECIAL):
                summary.refusals.add(as_id(relative), reason)
            else:
                summary.left_out[reason] += 1


def why_not_enter(folder: Path, kb_folder: Path, options: IngestOptions) -> str | None:
    if folder.is_symlink():
        return "folder behind a link"
    if folder.name.startswith(".") and not options.hidden:
        return "hidden folder (--hidden reads it)"
    if folder.name in OF_TOOLS or folder.name.endswith((".egg-info", ".dist-info")):
        return "folder of installed or compiled code"
    if folder.resolve() == kb_folder.resolve() or (exists(folder) and (folder / "documents.lance").is_dir()):
        return "knowledge base"
    return None


def why_not_read(file: Path, relative: str, root: Path, options: IngestOptions) -> str | None:
    if file.name.startswith(".") and not options.hidden:
        return "hidden file (--hidden reads it)"
    if options.include and not any(fnmatch.fnmatch(relative, pattern) for pattern in options.include):
        return "file that --include does not name"
    if any(fnmatch.fnmatch(relative, pattern) for pattern in options.exclude):
        return "file that --exclude names"
    if file.is_symlink() and not (file.is_file() and file.resolve().is_relative_to(root)):
        return LINK
    return None if stat.S_ISREG(file.stat().st_mode) else SPECIAL


def as_id(relative: str) -> str:
    """File names need not be text; what is none of it becomes \\udc.. escapes that can be stored and read back."""
    return clean(relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def is_taken(by: str, source: str) -> bool:
    """A document of the same name is from elsewhere. Where that no longer exists, it has moved here."""
    return by != source and (is_url(by) or Path(by).exists())


def listed_urls(path: Path) -> list[str]:
    """The URLs of a sitemap, and those in a file that holds nothing else but blank lines and comments (#)."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        if sitemap_urls(head) is not None:
            file.seek(0)
            return sitemap_urls(file.read(MAX_LIST)) or []
        if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"http", b"#")):
            return []
        file.seek(0)
        text = file.read(MAX_LIST).decode("utf-8-sig", "replace")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return lines if all(is_url(line) and not line.split()[1:] for line in lines) else []


def pages_of(urls: list[str], source: str, options: IngestOptions, summary: IngestSummary) -> Iterator[Document]:
    def reading(url: str, num_done: int, num_known: int) -> None:
        summary.place, summary.done, summary.total = printable(url), num_done, num_known

    for document in read_urls(urls, options.web, options.read, summary.refusals, source=source, progress=reading):
        yield document if not options.prefix else renamed(document, options.prefix)


def renamed(document: Document, prefix: str) -> Document:
    return replace(document, id=prefix + document.id)
