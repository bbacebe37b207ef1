"""Rows out of files, in all the ways that people write them, with errors that name file and line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import zipfile
from pathlib import Path

import pytest

from aurify.errors import UserError
from aurify.rows.sources import load_rows


def test_jsonl_and_json(tmp_path):
    rows = [{"a": "one\u2028line, \x85 and \u00fc"}, {"a": 2}]  # characters at which str.splitlines would cut
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    loaded = load_rows(lines)
    assert loaded == rows
    assert [row.location for row in loaded] == [f"{lines}:1", f"{lines}:2"]
    whole = tmp_path / "rows.json"
    whole.write_text(json.dumps(rows, indent=1))
    assert load_rows(str(whole)) == rows


def test_what_windows_writes(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert load_rows(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file has no rows; expected one JSON object a line"),
        (b'{"a": 1}\n{"a": }\n', r"rows.jsonl:2: not JSON: Expecting value \(column 7\): '\{\"a\": \}'"),
        (b'{"a": 1}\n7\n', "rows.jsonl:2: a row is a JSON object; this is int"),
        (b'[{"a": 1}, 7]', "rows.jsonl: row 2: a row is a JSON object; this is int"),
        (b'[{"a": 1},\n', "rows.jsonl:2: not JSON"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
    ],
)
def test_mistakes(tmp_path, content, expected):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        load_rows(path)


def test_a_missing_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"row.jsonl"):
        load_rows(tmp_path / "row.jsonl")
    with pytest.raises(UserError):
        load_rows(tmp_path)


TWO = [{"prompt": "Größe?", "completion": "a"}, {"prompt": "b", "completion": "c, d"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TWO)
PRETTY = [json.dumps(row, indent=2) for row in TWO]
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TABLE = 'prompt,completion\nGröße?,a\nb,"c, d"\n'
# name of the file, content: each holds TWO
SAME = {
    "marked.jsonl": LINES.encode("utf-8-sig"),
    "windows.jsonl": LINES.replace("\n", "\r\n").encode(),
    "powershell.jsonl": LINES.encode("utf-16"),
    "blank lines.jsonl": f"\n\n{LINES}\n \n".encode(),
    "no end.jsonl": LINES.strip().encode(),
    "zipped.jsonl.gz": gzip.compress(LINES.encode()),
    "zipped.jsonl.bz2": bz2.compress(LINES.encode()),
    "zipped.jsonl.xz": lzma.compress(LINES.encode()),
    "zipped without saying so.jsonl": gzip.compress(LINES.encode()),
    "list.json": json.dumps(TWO).encode(),
    "pretty list.json": json.dumps(TWO, indent=1).encode(),
    "objects one after the other.json": "\n".join(PRETTY).encode(),
    "objects on one line.jsonl": "".join(map(json.dumps, TWO)).encode(),
    "objects with commas.json": ",\n".join(PRETTY).encode(),
    "below a key.json": json.dumps({"version": 1, "data": TWO}).encode(),
    "below a key, pretty.json": json.dumps({"version": 1, "data": TWO}, indent=1).encode(),
    "columns of datasets.json": json.dumps({name: [row[name] for row in TWO] for name in TWO[0]}).encode(),
    "columns of pandas.json": json.dumps({name: {k: TWO[int(k)][name] for k in "01"} for name in TWO[0]}).encode(),
    "table.csv": TABLE.encode(),
    "table of excel.csv": TABLE.replace("\n", "\r\n").encode("utf-8-sig"),
    "table of pandas.csv": b',prompt,completion\n0,Gr\xc3\xb6\xc3\x9fe?,a\n1,b,"c, d"\n',
    "table with bars.csv": "prompt|completion\nGröße?|a\nb|c, d\n".encode(),
    "table with semicolons.csv": "prompt;completion\nGröße?;a\nb;c, d\n".encode(),
    "table.tsv": "prompt\tcompletion\nGröße?\ta\nb\tc, d\n".encode(),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_rows_however_they_are_written(tmp_path, name):
    (tmp_path / name).write_bytes(SAME[name])
    assert load_rows(tmp_path / name) == TWO


def test_tables_of_pyarrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(TWO)
    writers = {"stream.arrow": pyarrow.ipc.new_stream, "file.arrow": pyarrow.ipc.new_file}
    for name, write in writers.items():
        with write(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
        assert load_rows(tmp_path / name) == TWO
    (tmp_path / "rows.jsonl.zst").write_bytes(pyarrow.compress(LINES.encode(), "zstd", asbytes=True))
    assert load_rows(tmp_path / "rows.jsonl.zst") == TWO


def test_chats_without_a_column(tmp_path):
    for name, text in {
        "a.json": json.dumps([CHAT, CHAT]),
        "b.jsonl": f"{json.dumps(CHAT)}\n{json.dumps(CHAT)}\n",
    }.items():
        (tmp_path / name).write_text(text)
        assert load_rows(tmp_path / name) == [{"messages": CHAT}] * 2


def zip_archive(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("rows.jsonl", LINES)
    return path.read_bytes()


# name -> content, and what the error says: none of them is trained as plain text
OTHER = {
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "git lfs pull"),
    "page.jsonl": (b"<!DOCTYPE html>\n<html></html>", "a web page; fetch the file itself"),
    "page.csv": (b"\n<html></html>", "a web page"),
    "rows.pdf": (b"%PDF-1.4\n", "aurify ingest"),
    "rows.pkl": (pickle.dumps(TWO), "neither text nor parquet"),
    "rows.db": (b"SQLite format 3\0" + bytes(50), "neither text nor parquet"),
    "without a mark.jsonl": (LINES.encode("utf-16-le"), "write the rows as JSON lines"),
    "rows.yaml": (b"- prompt: a\n  completion: b\n", "no JSON, and no table; it begins with '- prompt"),
    "words.jsonl": (b"hello\nthere\n", "name the file .txt if it is plain text"),
    "damaged.jsonl.xz": (lzma.compress(LINES.encode())[:-40], "the xz file is damaged"),
    "damaged.jsonl.bz2": (bz2.compress(LINES.encode())[:-10], "the bzip2 file is damaged"),
    "splits.json": (json.dumps({"train": TWO, "test": TWO}).encode(), r"several lists of rows \(test, train\)"),
    "names.csv": (b"prompt,prompt\na,b\n", "two columns are named 'prompt'"),
    "ragged.csv": (b"prompt,completion\na\nb,c\n", "ragged.csv:2: 1 fields; the first line names 2 .* quotes"),
    "twice.jsonl": (b'{"a": 1, "b": 1, "a": 2}', "twice.jsonl:1: not JSON: the key 'a' stands twice"),
    "twice inside.json": (b'[{"m": [{"a": 1, "a": 2}]}]', "the key 'a' stands twice"),
    "latin.jsonl": (
        LINES.encode("latin-1"),
        ":1: column 'prompt' holds bytes that are not UTF-8 text; .*iconv",
    ),
    "words.json": (b'["a", "b"]', r"row 1: a row is a JSON object; this is str \(a\)"),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_file_of_rows_is_named(tmp_path, name):
    content, expected = OTHER[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        load_rows(tmp_path / name)


def test_an_archive_is_named(tmp_path):
    zip_archive(tmp_path / "rows.xlsx")
    with pytest.raises(UserError, match="a zip archive or a spreadsheet; unpack it, or save the sheet as CSV"):
        load_rows(tmp_path / "rows.xlsx")
