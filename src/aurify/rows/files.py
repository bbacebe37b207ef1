"""The rows of one file, one after the other. What kind of file it is follows from its first bytes: parquet, arrow, JSON
lines, JSON, CSV or plain text, compressed or not. Its name only says what it must hold: a web page in the place of
`rows.jsonl` is no text to train on."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from aurify.config import missing_file
from aurify.errors import UserError
from aurify.files import require
from aurify.rows.columns import CHAT
from aurify.rows.gsm8k import tidy_gsm8k_row
from aurify.rows.json_text import Entries, read_json_rows
from aurify.rows.row import BadRow, Row
from aurify.rows.tables import find_row_delimiter, read_paragraph_rows, read_table_rows
from aurify.rows.values import MESSAGES, drop_nulls_in_objects, find_half_character, row_has_keys, unpack_row_value

PARQUET, ARROW, STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
ENDINGS = (".gz", ".bz2", ".xz", ".zst")
OTHER_KINDS = {  # first bytes -> what the file is, and the mend
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or save the sheet as CSV",
    b"%PDF": "a PDF; `aurify ingest` reads such files into a knowledge base",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch that with: git lfs pull",
    b"<!doctype html": "a web page; fetch the file itself (on the hub: /resolve/ in place of /blob/)",
    b"<html": "a web page; fetch the file itself (on the hub: /resolve/ in place of /blob/)",
}
TEXT_BYTES = bytes([9, 10, 12, 13, 27, *range(32, 127), *range(128, 256)])
NO_TEXT = (
    ".jsonl",
    ".ndjson",
    ".json",
    ".parquet",
    ".arrow",
    ".yaml",
    ".yml",
    ".xml",
    ".pkl",
    ".pickle",
    ".npy",
    ".pt",
)
HEAD = 65_536  # bytes that decide on the kind of file
BATCH = 256  # rows of a parquet file that are in memory at a time


def read_row_file(path: Path) -> Iterator[Row | BadRow]:
    """Every row; for one that cannot be read, the error that says why."""
    path = path.expanduser()
    if not path.is_file():
        raise UserError(missing_file(path))
    for location, entry in read_row_entries(path):
        yield build_row(entry, location)


def build_row(entry: Any, location: str) -> Row | BadRow:
    if isinstance(entry, BadRow):
        return entry
    if isinstance(entry, list) and entry and all(row_has_keys(message, MESSAGES) for message in entry):
        entry = {"messages": entry}
    if not isinstance(entry, Mapping):
        problem = f"a row is a JSON object; this is {type(entry).__name__}"
        return BadRow(
            location, f'{problem} ({str(entry)[:40]}); write it as a column, such as {{"text": ...}}', problem
        )
    values, changes = tidy_gsm8k_row({name: unpack_row_value(value) for name, value in entry.items()})
    for name, value in values.items():
        if name in CHAT and isinstance(value, str) and value.lstrip().startswith(("[{", '{"')):
            problem = f"column {name!r} begins like JSON and is none"
            return BadRow(location, f"{problem} ({value[-40:]!r} is its end); write the whole conversation", problem)
        if found := find_half_character(value) or find_half_character(name):
            problem, mend = found
            return BadRow(location, f"column {name!r} holds {problem}; {mend}", problem)
    return Row(values, location, changes=changes)


def read_row_entries(path: Path) -> Entries:
    with path.open("rb") as file:
        begin = file.read(32)
        compressed = next((name for magic, name in COMPRESSED.items() if begin.startswith(magic)), "")
        try:
            content = open_row_file(file, compressed)
            head = content.read(HEAD)
            content.seek(0)
            yield from read_row_bytes(path, content, head)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if not compressed:
                raise
            raise UserError(f"{path}: the {compressed} file is damaged ({error}); fetch it again") from None


def open_row_file(file: IO[bytes], compressed: str) -> Any:
    file.seek(0)
    if compressed == "zstd":
        pyarrow = require("pyarrow", "hub", f"{file.name} is compressed with zstd; to read it")
        with pyarrow.input_stream(file.name, compression="zstd") as opened:
            return io.BytesIO(opened.read())
    if compressed == "gzip":
        return gzip.GzipFile(fileobj=file)
    if compressed == "bzip2":
        return bz2.BZ2File(file)
    return lzma.LZMAFile(file) if compressed else file


def read_row_bytes(path: Path, content: IO[bytes], head: bytes) -> Entries:
    if head.startswith(PARQUET):
        yield from read_parquet(path, content)
        return
    if head.startswith((ARROW, STREAM)):
        yield from read_arrow(path, content, stream=head.startswith(STREAM))
        return
    begin = head.removeprefix(codecs.BOM_UTF8).lstrip()[:64].lower()
    if kind := next((kind for magic, kind in OTHER_KINDS.items() if begin.startswith(magic.lower())), ""):
        raise UserError(f"{path} is {kind}")
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not marked and len(head.translate(None, TEXT_BYTES)) * 10 > len(head):
        raise UserError(f"{path} is neither text nor parquet or arrow; write the rows as JSON lines (UTF-8) or parquet")
    encoding = "utf-16" if marked else "utf-8-sig"  # bytes that are not UTF-8 are told with their row
    with io.TextIOWrapper(content, encoding, "surrogateescape", newline="") as lines:
        yield from read_decoded_rows(path, lines, head.decode(encoding, "replace").lstrip("\ufeff \t\r\n"))


def read_decoded_rows(path: Path, lines: IO[str], head: str) -> Entries:
    suffixes = [suffix for suffix in path.suffixes if suffix.lower() not in ENDINGS]
    suffix = suffixes[-1].lower() if suffixes else ""
    if head.startswith("[") or any(line.lstrip().startswith("{") for line in head.split("\n")[:20]):
        return read_json_rows(path, lines, head)
    delimiter = find_row_delimiter(head, suffix)
    if delimiter is not None:
        return read_table_rows(path, lines, delimiter)
    if head and suffix in NO_TEXT:
        raise UserError(
            f"{path}: no JSON, and no table; it begins with {head[:60]!r}. Write one JSON object a line, or name the "
            "file .txt if it is plain text"
        )
    return read_paragraph_rows(path, lines)


# ---------------------------------------------------------------------- tables of pyarrow


def read_parquet(path: Path, content: IO[bytes]) -> Entries:
    parquet = require("pyarrow.parquet", "hub", f"{path} is a parquet file; to read it")
    try:
        with parquet.ParquetFile(content) as file:
            yield from read_row_batches(path, file.iter_batches(batch_size=BATCH))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the parquet file cannot be read ({error}); write it anew") from error


def read_arrow(path: Path, content: IO[bytes], stream: bool) -> Entries:
    """As `save_to_disk` of datasets writes it."""
    ipc = require("pyarrow.ipc", "hub", f"{path} is an arrow file; to read it")
    try:
        if stream:
            yield from read_row_batches(path, ipc.open_stream(content))
        else:
            opened = ipc.open_file(content)
            yield from read_row_batches(path, map(opened.get_batch, range(opened.num_record_batches)))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the arrow file cannot be read ({error}); write it anew") from error


def read_row_batches(path: Path, batches: Iterable[Any]) -> Entries:
    number = 0
    for batch in batches:
        for entry in batch.to_pylist():
            number += 1
            yield f"{path}: row {number}", {name: drop_nulls_in_objects(value) for name, value in entry.items()}
