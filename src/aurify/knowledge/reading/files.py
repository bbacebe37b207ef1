"""A file to documents. What kind of file it is follows from its first bytes; its name decides only between kinds of
text, which look alike: Markdown, a programming language, JSON lines, CSV.

    for document in read_file(Path("notes/heart.pdf"), "heart.pdf", ReadOptions(), refusals): ...

Nothing larger than allowed is unpacked or held in memory. Whatever is not read is counted in `refusals`.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, cast

from aurify.bounds import Checked, PositiveInt
from aurify.knowledge.reading.pdf import UnreadablePdf, read_pdf
from aurify.knowledge.reading.refusals import FRONT_MATTER, Refusals, Refused, clean
from aurify.knowledge.reading.rows import Columns, read_rows
from aurify.knowledge.reading.webpage import Page, read_page
from aurify.knowledge.types import Document, Metadata

MB = 1_000_000
HEAD = 8192
RATIO = 100  # text shrinks to a tenth, a list of equal lines to a fiftieth; what shrinks more is made to harm
BINARY = {
    b"PK\x03\x04": "ZIP archive or office document: unpack it, or save it as PDF or text",
    b"PK\x05\x06": "ZIP archive or office document: unpack it, or save it as PDF or text",
    b"7z\xbc\xaf": "archive: unpack it",
    b"\xfd7zXZ": "archive: unpack it",
    b"BZh": "archive: unpack it",
    b"\x28\xb5\x2f\xfd": "archive: unpack it",
}
ROWS = frozenset({".jsonl", ".ndjson"})
TABLES = frozenset({".csv", ".tsv"})
PAGES = frozenset({".html", ".htm", ".xhtml"})
FORMATS = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".mdx": "markdown",
    ".py": "python",
    ".pyi": "python",
    ".js": "javascript",
    ".jsx": "javascript",
    ".mjs": "javascript",
    ".cjs": "javascript",
    ".ts": "typescript",
    ".mts": "typescript",
    ".tsx": "tsx",
    ".go": "go",
    ".rs": "rust",
    ".java": "java",
    ".c": "c",
    ".h": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".cxx": "cpp",
    ".hh": "cpp",
    ".hpp": "cpp",
    ".hxx": "cpp",
}
SHEBANG = re.compile(rb"#!.*\b(python|node)")
IS_CPP = re.compile(r"^\s*(?:class\s+\w+\s*[:{]|namespace\s|template\s*<|using\s+\w+\s*=)", re.MULTILINE)
HTML_START = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
PRINTABLE = bytes([9, 10, 12, 13, 27, *range(32, 127), *range(128, 256)])
TEXT_CODEC = re.compile(
    r"utf-?(8|16|32)|(us-)?ascii|latin|iso-?8859|windows-|cp\d|koi8|big5|gb|euc-|shift|tis-?620", re.IGNORECASE
)
HYPHEN = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


@dataclass(frozen=True)
class ReadOptions(Checked):
    columns: Columns = field(default_factory=Columns)
    max_bytes: PositiveInt = 10 * MB  # of a text, unpacked; of a line of JSON lines or CSV
    max_pdf_bytes: PositiveInt = 200 * MB


def read_file(
    path: Path, id: str, options: ReadOptions, refusals: Refusals, *, source: str = "", row_prefix: str | None = None
) -> Iterator[Document]:
    """`id` names the document; rows are named by what `row_prefix` and their own id make, by default "ID:ROW"."""
    try:
        with path.open("rb") as file:
            yield from read_stream(file, path.stat().st_size, id, options, refusals, source, row_prefix)
    except Refused as refused:
        refusals.add(id, refused.reason, refused.transient)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        refusals.add(id, "damaged gzip file")
    except OSError as error:
        refusals.add(id, f"cannot be opened: {error.strerror or error}", transient=True)


def read_stream(
    file: IO[bytes],
    size: int,
    id: str,
    options: ReadOptions,
    refusals: Refusals,
    source: str = "",
    row_prefix: str | None = None,
) -> Iterator[Document]:
    name = PurePosixPath(id)
    head = file.read(HEAD)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        limit = max(options.max_bytes, RATIO * size)
        file = cast(IO[bytes], io.BufferedReader(Bounded(gzip.GzipFile(fileobj=file), limit)))
        head, size = file.peek(HEAD)[:HEAD], 0  # type: ignore[attr-defined]
        name = name.with_suffix("") if name.suffix == ".gz" else name
    check_kind(head)
    is_json = name.suffix.lower() in ROWS and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    if is_json or name.suffix.lower() in TABLES:
        prefix = f"{id}:" if row_prefix is None else row_prefix
        yield from read_rows(file, id, prefix, options.columns, options.max_bytes, refusals, source)
        return
    limit = options.max_pdf_bytes if is_pdf(head) else options.max_bytes
    data = b"" if size > limit else file.read(limit + 1)
    if size > limit or len(data) > limit:
        raise Refused(f"larger than {limit // MB if limit >= MB else limit / MB} MB")
    yield to_document(data, id, name, options, source)


def to_document(
    data: bytes,
    id: str,
    name: PurePosixPath,
    options: ReadOptions,
    source: str = "",
    charset: str | None = None,
    metadata: Metadata | None = None,
) -> Document:
    """A whole file in memory. `charset` is what a web server says of it."""
    format, title = FORMATS.get(name.suffix.lower(), "text"), ""
    check_kind(data[:HEAD])
    if is_pdf(data[:HEAD]):
        format = "markdown"
        text, title = pdf_markdown(data, options.max_bytes)
    elif is_html(data[:HEAD], name):
        format = "markdown"
        page = to_page(data, charset=charset)
        text, title = page.text, page.title
    else:
        text = clean(decoded(data, charset))
        if format == "text" and (found := SHEBANG.match(data)):
            format = {b"python": "python", b"node": "javascript"}[found[1]]
        if name.suffix.lower() == ".h" and IS_CPP.search(text):
            format = "cpp"
        if format == "markdown":
            title = markdown_title(text)
    if format in ("text", "markdown"):
        title = title or name.stem.replace("_", " ")
    return Document(id, clean(text), clean(title), format, source, metadata or {})


def to_page(data: bytes, url: str = "", charset: str | None = None) -> Page:
    declared = CHARSET.search(data[:HEAD])
    return read_page(decoded(data, charset or (declared[1].decode("ascii") if declared else None)), url)


def check_kind(head: bytes) -> None:
    for start, reason in BINARY.items():
        if head.startswith(start):
            raise Refused(reason)
    if not is_pdf(head) and not head.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in head:
        raise Refused("binary file")


def is_pdf(head: bytes) -> bool:
    return b"%PDF-" in head[:1024]


def is_html(head: bytes, name: PurePosixPath) -> bool:
    named = name.suffix.lower() in PAGES
    return named or (name.suffix.lower() not in FORMATS and HTML_START.match(head) is not None)


def decoded(data: bytes, charset: str | None = None) -> str:
    """By the byte order mark, as declared, as UTF-8, as Windows-1252: the first that fits."""
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    marked = next((name for mark, name in marks.items() if data.startswith(mark)), None)
    head = data[:HEAD]
    if marked != "utf-16" and (b"\0" in head or len(head.translate(None, PRINTABLE)) * 10 > len(head)):
        raise Refused("binary file")
    for name in (marked, charset, "utf-8"):
        if name is not None and TEXT_CODEC.match(name):
            try:
                return data.decode(name)
            except (LookupError, ValueError):
                continue
    return data.decode("cp1252", "replace")


def pdf_markdown(data: bytes, max_chars: int) -> tuple[str, str]:
    """Pages under headings of their own, so that a passage says where it stands."""
    try:
        pdf = read_pdf(data, max_chars)
    except UnreadablePdf as error:
        raise Refused(str(error)) from None
    pages = [(number, HYPHEN.sub("", text).strip()) for number, text in enumerate(pdf.pages, 1)]
    return "\n\n".join(f"# Page {number}\n\n{text}" for number, text in pages if text), pdf.title


def markdown_title(text: str) -> str:
    """Of the front matter, else the first heading."""
    front = FRONT_MATTER.match(text)
    if front and (found := re.search(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", front[1], re.MULTILINE)):
        return found[1]
    found = re.search(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", text, re.MULTILINE)
    return found[1] if found else ""


class Bounded(io.RawIOBase):
    """A stream that ends in a refusal after so many bytes."""

    def __init__(self, file: gzip.GzipFile, limit: int) -> None:
        self.file, self.left = file, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self.file.read(len(buffer))
        self.left -= len(data)
        if self.left < 0:
            raise Refused("unpacks to more than a hundred times its size")
        buffer[: len(data)] = data
        return len(data)
