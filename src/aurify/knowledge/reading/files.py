"""A file to documents. What kind of file it is follows from its first bytes; its name decides only between kinds of
text, which look alike: Markdown, a programming language, JSON lines, CSV.

    for document in read_documents(Path("notes/heart.pdf"), "heart.pdf", ReadOptions(), refusals): ...

Nothing larger than allowed is unpacked or held in memory. Whatever is not read is counted in `refusals`.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

from aurify.knowledge.reading.encoding import HEAD, decode_document, decode_html, find_byte_order_mark
from aurify.knowledge.reading.pdf import read_pdf
from aurify.knowledge.reading.refusals import FRONT_MATTER, Refusals, Refused, clean_document_text
from aurify.knowledge.reading.rows import ReadOptions, parse_row_documents
from aurify.knowledge.reading.webpage import NO_TEXT, read_web_html
from aurify.knowledge.types import Document

MB = 1_000_000
MAX_PDF_BYTES = 200 * MB
RATIO = 100  # text shrinks to a tenth, a list of equal lines to a fiftieth; what shrinks more is made to harm
GZIP = b"\x1f\x8b"
ZIPS = (b"PK\x03\x04", b"PK\x05\x06")
ARCHIVES = (b"7z\xbc\xaf", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")
ROWS = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
PAGES = (".html", ".htm", ".xhtml")
SUFFIXES = {
    "markdown": ".md .markdown .mdx",
    "python": ".py .pyi",
    "javascript": ".js .jsx .mjs .cjs",
    "typescript": ".ts .mts",
    "tsx": ".tsx",
    "go": ".go",
    "rust": ".rs",
    "java": ".java",
    "c": ".c .h",
    "cpp": ".cc .cpp .cxx .hh .hpp .hxx",
}
FORMATS = {suffix: format for format, suffixes in SUFFIXES.items() for suffix in suffixes.split()}
SHEBANGS = {"python": "python", "node": "javascript"}
SHEBANG = re.compile(r"#!.*\b(python|node)")
IS_CPP = re.compile(r"^\s*(?:class\s+\w+\s*[:{]|namespace\s|template\s*<|using\s+\w+\s*=)", re.MULTILINE)
HTML_START = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)


def read_documents(
    path: Path, id: str, options: ReadOptions, refusals: Refusals, *, own_ids: bool = False
) -> Iterator[Document]:
    """`id` names the document. Its rows, where it has some, are named "ID:ROW", or by their own ids alone."""
    try:
        with path.open("rb") as file:
            yield from parse_documents(file, id, options, refusals, own_ids=own_ids)
    except Refused as refused:
        refusals.add(id, refused.reason, refused.transient)
    except OSError as error:
        refusals.add(id, f"cannot be opened: {error.strerror or error}", transient=True)


def parse_documents(
    file: io.BufferedReader[Any],
    id: str,
    options: ReadOptions,
    refusals: Refusals,
    *,
    own_ids: bool = False,
    charset: str | None = None,
) -> Iterator[Document]:
    """`charset` is what a web server says of a text. Raises `Refused`."""
    name = PurePosixPath(id)
    kind = find_document_kind(file.peek(HEAD), name)
    if kind == "gzip":
        limit = max(options.max_bytes, RATIO * file.seek(0, os.SEEK_END))
        file.seek(0)
        file = io.BufferedReader(cast(Any, BoundedGzip(file, limit)))
        name = name.with_suffix("") if name.suffix == ".gz" else name
        kind = find_document_kind(file.peek(HEAD), name)
    if kind in ("table", "rows"):
        prefix = "" if own_ids else f"{id}:"
        yield from parse_row_documents(file, id, prefix, options, refusals, is_table=kind == "table")
        return
    limit = MAX_PDF_BYTES if kind == "pdf" else options.max_bytes
    data = file.read(limit + 1)
    if len(data) > limit:
        raise Refused(f"larger than {limit // MB if limit >= MB else limit / MB} MB")
    if kind == "text":
        yield build_text_document(decode_document(data, charset), id, name)
        return
    if kind == "pdf":
        text, title = read_pdf(data, options.max_bytes)
    else:
        page = read_web_html(decode_html(data, charset))
        text, title = page.text, page.title
    if not text:
        raise Refused(NO_TEXT)
    yield Document(id, clean_document_text(text), clean_document_text(title) or name.stem.replace("_", " "), "markdown")


def find_document_kind(data: bytes, name: PurePosixPath) -> str:
    """One of pdf, gzip, html, table (CSV), rows (JSON lines) and text. Raises `Refused` for everything else."""
    head, suffix = data[:HEAD], name.suffix.lower()
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith(GZIP):
        return "gzip"
    if head.startswith(ZIPS):
        raise Refused("ZIP archive or office document: unpack it, or save it as PDF or text")
    if head.startswith(ARCHIVES):
        raise Refused("archive: unpack it")
    if b"\0" in head and find_byte_order_mark(head) is None:
        raise Refused("binary file")
    if suffix in TABLES:
        return "table"
    if suffix in ROWS and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "rows"
    return "html" if suffix in PAGES or (suffix not in FORMATS and HTML_START.match(head)) else "text"


def build_text_document(text: str, id: str, name: PurePosixPath) -> Document:
    """Markdown, source code or plain text."""
    text = clean_document_text(text)
    format = FORMATS.get(name.suffix.lower(), "text")
    if format == "text" and (found := SHEBANG.match(text)):
        format = SHEBANGS[found[1]]
    if name.suffix.lower() == ".h" and IS_CPP.search(text):
        format = "cpp"
    title = find_document_title(text) if format == "markdown" else ""
    if format in ("text", "markdown"):
        title = title or name.stem.replace("_", " ")
    return Document(id, text, title, format)


def find_document_title(markdown: str) -> str:
    """The title in the front matter, else the first heading."""
    front = FRONT_MATTER.match(markdown)
    if front and (found := re.search(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", front[1], re.MULTILINE)):
        return found[1]
    found = re.search(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", markdown, re.MULTILINE)
    return found[1] if found else ""


class BoundedGzip(io.RawIOBase):
    """What a gzip file unpacks to; more than `limit` bytes are refused."""

    def __init__(self, file: io.BufferedReader[Any], limit: int) -> None:
        self.file, self.left = gzip.GzipFile(fileobj=file), limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        try:
            data = self.file.read(len(buffer))
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise Refused("damaged gzip file") from None
        self.left -= len(data)
        if self.left < 0:
            raise Refused("unpacks to more than a hundred times its size")
        buffer[: len(data)] = data
        return len(data)
